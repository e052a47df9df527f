"""Connections: pools, sibling databases and retries."""
