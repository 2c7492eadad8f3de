"""Kafka on one machine: the real broker from its Maven jars, or librdkafka's in-memory one.

The supervisor and the tests choose; who only has a bootstrap address cannot tell which it is,
except that the in-memory one forgets everything when it ends.
"""
