"""Sizes and times of storage layouts: `longbatch measure` and `longbatch plan`."""
