"""The build spec: its models and error messages."""
