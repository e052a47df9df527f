"""Backups: what they hold, how they are made and brought back."""
