"""What is checked of each lab, `labNN/`, a file for each of its TODOs. How checks are written is said in `grading.checks`."""
