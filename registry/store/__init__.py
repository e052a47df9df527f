"""MLflow: versions, aliases, artifacts, and what is registered there."""
