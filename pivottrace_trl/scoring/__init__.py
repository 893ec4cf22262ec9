"""A pool to one score a prompt."""
