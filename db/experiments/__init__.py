"""Experiments, their counts, and the splits of traffic as ingress replicas follow them."""
