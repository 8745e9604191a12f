"""A client that puts a running server under load, and the report of what it measured."""
