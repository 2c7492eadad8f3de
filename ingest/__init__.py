"""HTTP: actions in, receipts and standings out.

Called by frontends and back ends; started by `python -m ingest`. It stamps, checks and publishes
what users did and shows what the ledger says; it never judges, counts or keeps anything.
"""
