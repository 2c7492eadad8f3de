"""The edges of storage: Postgres, Redis and Kafka, on real servers where it matters."""
