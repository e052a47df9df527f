"""Experiments, their counts, and the feed of running ones that ingress replicas follow."""
