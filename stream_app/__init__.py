"""The stream: submitted actions in, verdicts and revisions out, and the followers it runs.

Run as `python -m stream_app`. It decides by pure functions over what the ledger says, writes
one transaction a batch, and lets every copy follow; it answers no HTTP but health and metrics.
"""
