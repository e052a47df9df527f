"""The tables, the schema's revisions and the roles that use them. Reads and writes no rows of the application."""
