"""Training of heads and joint models."""
