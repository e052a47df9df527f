"""Reads over many predictions: statistics, labels, windows, disagreements."""
