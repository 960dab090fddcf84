"""The audit of a dataset: its structure, and a comparison with the naive reference."""
