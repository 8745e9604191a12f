"""Imports the solution by its name.

lab = "06"
base = "solution"
worth = 0
todos = [1, 2, 3, 4, 5, 6]
"""

from solution import slots
