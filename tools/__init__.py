"""What sets a checkout up. Runs before anything is installed, so it imports nothing but Python."""
