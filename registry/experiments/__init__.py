"""The statistics and policies of experiments."""
