"""Committing to a dataset: attempts and their files, what an engine hands over, gates, incremental state, rewrites."""
