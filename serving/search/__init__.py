"""Search over the stored texts, and labels suggested by neighbours."""
