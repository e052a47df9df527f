"""Model bundles, MLflow versions and aliases, training, evaluation; never HTTP, Ray or the request path."""
