"""The PostgreSQL that comes with Valence: its server, its account, its configuration."""
