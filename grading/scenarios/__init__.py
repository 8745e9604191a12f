"""What is checked of each lab, `labNN/`, by TODO. How checks are written is said in `grading.judge.checks`."""
