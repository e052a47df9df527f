"""The base of every other package of serving. Knows no use case."""
