"""What instructors run. It begins with `python -m grading starter`, which makes a lab's starter from its solution."""
