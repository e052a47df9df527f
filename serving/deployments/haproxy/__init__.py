"""HAProxy in front of the ingress: its configuration, its stand-in, its refusals."""
