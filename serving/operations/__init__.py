"""Operators' tasks: backups, encryption and MLflow's UI."""
