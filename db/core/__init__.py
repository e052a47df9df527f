"""Foundations of db: ids, encryption, URLs, cursors, binary arrays. Knows no table."""
