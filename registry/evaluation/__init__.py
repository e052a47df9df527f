"""The measures of a version, and the gates that it must pass."""
