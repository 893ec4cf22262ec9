"""Measures how well the scores rank a labelled pool. Reads every label of the pool: for research only."""
