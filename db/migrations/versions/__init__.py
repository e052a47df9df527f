"""One file a migration; a released migration never changes."""
