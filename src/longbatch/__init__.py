"""Request-level batches over 10,000-event user histories."""

__version__ = "0.1.0"
