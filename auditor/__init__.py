"""The auditor: recounts the default board from the topics alone and compares everybody with it.

A process of its own, with arithmetic of its own: it may not import what judges, folds or ranks
for the others. It reads `action.judged`, `player` and `board.changed` from Kafka, asks HTTP, the
feed and Redis what they show, and writes nothing but metrics and log lines.
"""
