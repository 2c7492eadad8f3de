"""The web page: static files that ingest serves as they are (`ingest/page.py`), without a build step.

No Python runs here. `vendor/` holds others' files, byte for byte as published, with their licences.
"""
