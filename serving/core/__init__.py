"""What every other package of serving stands on. Knows no use case."""
