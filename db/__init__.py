"""The schema, the migrations and every SQL statement of Valence; never HTTP, Ray or MLflow."""
