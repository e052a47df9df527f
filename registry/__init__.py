"""Model bundles, MLflow versions and aliases, training, evaluation. Knows no HTTP, no Ray and no request."""
