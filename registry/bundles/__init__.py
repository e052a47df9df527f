"""A model bundle on disk: its manifest, its files, its digests."""
