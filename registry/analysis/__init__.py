"""Statistics of embeddings and labels: clusters, drift, votes of neighbours. Pure functions on arrays."""
