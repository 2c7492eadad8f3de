"""Postgres, Redis and Kafka as Trueboard uses them.

Called by ingest, stream_app, push and the command. It decides nothing: what is judged and
what an order means comes from `core`; here it is written down, read back and sent.
"""
