"""The bodies of requests and responses; no behaviour beyond validation and formatting."""
