"""How a version is measured, and the gates that it must pass."""
