"""In-memory stand-ins for the borders of this layer, shipped for tests: one module a part of the platform."""
