"""What each path reads and answers, one file per kind of caller.

Called by `ingest.app` alone. A route decodes, asks, and writes the answer down; it never decides
what an action is worth or whether it may count.
"""
