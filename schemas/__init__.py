"""Errors, the build spec, and the on-disk format; every other folder uses them."""
