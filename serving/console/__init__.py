"""The web console's files: a page that is a client of the public API, and knows nothing that the API doesn't say."""
