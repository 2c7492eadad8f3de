"""Postgres, Valkey and Kafka on one machine without containers, and the processes that use them.

Called by `trueboard up` and by the tests. The servers listen on loopback only, keep what they hold
in one data directory, and never outlive the process that started them. Not for production.
"""
