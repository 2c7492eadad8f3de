"""The same machine over the product: its own classes, a real Postgres, a real Valkey, an in-memory broker.

A task is one call of the product, in a thread that runs only while it is told to and may stand at any
place that `service.failpoints` names. While it stands anybody else may go on; it may be killed there
with its process, lose its session, or find its server restored. What is shown is held against the
ledger's rows, recounted by code that shares nothing with the product (`recount`).
"""
