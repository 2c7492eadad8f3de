"""The checks of `trueboard verify`: the ledger recounted, and all that follows it compared.

Called by the command on a live system, which they only read. What the services compute is computed
here once more, by code of its own, so that one mistake is not made twice in the same way.
"""
