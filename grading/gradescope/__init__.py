"""An autograder for Gradescope: its zip, what runs in its container, and a dry run of both here."""
