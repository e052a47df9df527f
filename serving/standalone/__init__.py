"""The platform on one machine: its supervisor, its processes, its state."""
