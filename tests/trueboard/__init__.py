"""The command a person runs."""
