"""Holds the documentation to what is there: commands, settings, metrics, routes, topics, examples."""
