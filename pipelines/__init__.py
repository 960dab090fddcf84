"""Transformations from raw rows to record batches: frames and arrays in, frames and arrays out; no files, no tasks."""
