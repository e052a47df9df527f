"""Foundations of the other packages of db: ids, encryption, URLs, binary arrays. Knows no table."""
