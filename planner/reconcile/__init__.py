"""A real run's memory beside the ledger that planned it."""
