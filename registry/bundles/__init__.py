"""Model bundles on disk: a manifest, its files and their digests."""
