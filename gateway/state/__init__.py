"""State that all workers and replicas of a gateway share: leased accounts and rate buckets, in SQLite or in Redis."""
