"""Erasure, retention, and the rotation of text keys."""
