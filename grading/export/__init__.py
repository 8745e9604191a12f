"""Results as files that leave grading, a module for each form. From entries of the journal to text; nothing is run.

The same entries give the same bytes. One module, `grading.export.lines`, decides what a student sees of a
check.
"""
