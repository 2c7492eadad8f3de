"""Processes that are really killed, paused and cut off, while clients write down all that they are told."""
