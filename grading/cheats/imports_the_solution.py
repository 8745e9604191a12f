"""Imports the solution by its name.

base = "solution"
worth = 0
"""

from solution import slots
