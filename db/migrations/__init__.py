"""The way from an empty database to the schema in `db.tables`, step by step."""
