"""Evidence to routes and order: pure numbers, no model and no trainer."""
