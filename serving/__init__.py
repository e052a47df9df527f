"""The serving layer: HTTP, routing, batching, replicas, fleet, command line. Holds no SQL and no MLflow call."""
