"""Readers of raw logs: one set for both engines, so that a value means the same on a laptop and on a cluster."""
