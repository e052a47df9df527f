"""Topics, drift, review: reads over a window of predictions."""
