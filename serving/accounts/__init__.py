"""Users and keys, authentication, rate limits."""
