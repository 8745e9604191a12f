"""Results as files that leave grading, a module for each form. From entries of the journal to text; nothing is run.

The same entries give the same bytes. What a student gets to see of a check is decided in one place,
`grading.export.lines`.
"""
