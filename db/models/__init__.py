"""The history of champions, and evaluations."""
