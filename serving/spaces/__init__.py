"""Embedding spaces, and the change from one to another."""
