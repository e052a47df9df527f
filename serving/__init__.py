"""The serving layer: HTTP, routing, batching, replicas, control, command line. Holds no SQL and no MLflow call."""
