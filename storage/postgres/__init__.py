"""The truth: ledger, revisions, deltas, entries, players and definitions in Postgres."""
