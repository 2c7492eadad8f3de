"""The published numbers, measured anew: one file each, with its honest rival in the same run.

Run by a person or by `make bench`, each file by itself, on servers of its own that are started for
it and thrown away. Nothing here is imported by what it measures, and nothing fails for being slow.
"""
