"""What the words of Trueboard mean: actions, verdicts, revisions, deltas, digests, order.

Everything else calls this package, and it calls nothing: no I/O, no clock, no randomness, no
framework. Times, ids and random bytes are arguments.
"""
