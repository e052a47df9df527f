"""The tables, the schema's versions and the roles that use them. Knows no query."""
