"""The command line: parses arguments, calls the jobs and the trainer, and prints their results."""
