"""Evaluation, gates, promotion and the history of champions."""
