"""Batch jobs: one module per command, and the engines, readers, commits, reports and simulator that they use."""
