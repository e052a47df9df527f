"""Personal data in texts, and erasure."""
