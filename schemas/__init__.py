"""Errors, the build spec, and the on-disk format; all other folders use them."""
