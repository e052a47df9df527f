"""Erasure, retention, and the change of encryption keys."""
