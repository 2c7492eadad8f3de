"""The command a person runs: start everything, get a token, simulate, replay, verify.

Called from a terminal or a Makefile. It reaches the services over their public interfaces and
never decides what an action is worth.
"""
