"""Submissions that try to get points they did not earn, or to keep others from theirs. Read by `grading.red_team.corpus`.

A file is what is put in place of the same functions of the solution, or of the starter, and behind them. Its
docstring says what it tries, and after an empty line, as TOML, of which lab it is, on what it is built and what its
honest part is worth. None of them is imported here, and each has an end: they are to be stopped by the judge, not by luck.
"""
