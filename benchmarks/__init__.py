"""Benchmarks: what the documentation claims, measured by `longbatch bench`."""
