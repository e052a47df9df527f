"""Predictions, feedback and idempotency: the writer and the readers."""
