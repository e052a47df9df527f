"""Backups: their format, and how they are taken and restored."""
