"""The live feed: every change of a board, to everybody who watches it, in each protocol's words.

`python -m push` runs it; browsers and back ends connect to it. It never judges an action, never
writes to the ledger or to a board, and never shows anything but a board at a revision.
"""
