"""What must hold of a run, recounted from its files alone; `tests.faults.checker` puts it together.

One module per thing that is looked at: actions, the ledger itself, logs and topics, people, and what was
shown. None of them uses what judges, folds, ranks or digests in the product.
"""
