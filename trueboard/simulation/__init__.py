"""Seeded traffic: who does what and when, sending it, and accounting for every action of it.

Called by `trueboard simulate`. The plan is a pure function of its seed; sending knows HTTP alone;
accounting looks at what the ledger says and decides nothing.
"""
