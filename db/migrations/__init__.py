"""Migrations from an empty database to the schema in `db.schema.tables`."""
