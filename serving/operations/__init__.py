"""Backups, encryption keys and MLflow's UI, as operators call for them."""
