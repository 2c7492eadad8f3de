"""What every process has: settings, logs, metrics, health, tracing, keys and tokens.

The three services and the command call it; it knows nothing of actions, boards or storage.
It never reads the environment by itself and never decides what a caller is allowed to do.
"""
