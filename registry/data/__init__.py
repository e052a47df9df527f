"""Texts with labels: the corpora and the held-out set."""
