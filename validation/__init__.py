"""Checks of datasets: row rules, the naive reference, the audit, and Great Expectations suites."""
