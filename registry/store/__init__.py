"""The versions, encoders, aliases and artifacts that MLflow keeps."""
