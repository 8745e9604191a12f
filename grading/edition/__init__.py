"""A term's student edition, and grading by the tag that pins it."""
