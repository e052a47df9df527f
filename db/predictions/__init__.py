"""Predictions, feedback and idempotency: the writer, the readers, and the month partitions."""
