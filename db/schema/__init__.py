"""The tables, their versions and the roles that may use them. Knows no query."""
