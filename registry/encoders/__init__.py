"""Encoder bundles: the sources of their weights, their export, and their CPU engines."""
