"""The PostgreSQL that comes with Valence: its server, its OS users, its configuration."""
