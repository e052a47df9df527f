"""Vectors: their segments and indexes, their spaces, and the change from one space to another."""
