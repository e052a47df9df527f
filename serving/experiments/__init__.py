"""Experiments, and the runner of their policies."""
