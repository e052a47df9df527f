"""Labelled texts: the corpora and the held-out set."""
