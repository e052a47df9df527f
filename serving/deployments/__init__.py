"""Ray Serve: the deployments, the cluster they run on, and the HAProxy in front."""
