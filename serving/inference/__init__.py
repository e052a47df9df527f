"""From texts to scores and vectors: batching, the remote call, replicas, engines."""
