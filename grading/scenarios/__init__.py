"""What is checked of each lab, `labNN.py`. How checks are written is said in `grading.checks`."""
