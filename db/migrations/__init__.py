"""The way from an empty database to the schema in `db.schema.tables`, step by step."""
