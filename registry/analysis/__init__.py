"""Statistics on embeddings and labels: clusters, drift, votes of neighbours."""
