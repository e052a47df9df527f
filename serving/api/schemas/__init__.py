"""The shapes of requests and answers; they hold no behaviour beyond validation."""
