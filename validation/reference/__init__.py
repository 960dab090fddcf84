"""The naive reference: what a build must produce, in plain Python, and readers for its raw logs."""
