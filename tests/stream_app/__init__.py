"""The stream: judging, its transaction, its followers, and its life among Kafka and Postgres."""
