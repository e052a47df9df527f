"""Encoders: where their weights come from, and the engines they are built for."""
