"""Errors for users: the message says what is wrong, where, what was found, and what to do.

Every error takes one argument, so that it can be pickled between processes. `exit_code` is the exit code of the
command line.
"""

from __future__ import annotations


class LongbatchError(Exception):
    """Base of every error longbatch raises on purpose."""

    exit_code = 1


class DataError(LongbatchError):
    """The input data failed a check; nothing was committed."""


class DatasetError(LongbatchError):
    """A dataset on disk is missing, truncated, altered or of an unknown version."""


class SpecError(LongbatchError):
    """The build spec, or an argument, is invalid or inconsistent."""

    exit_code = 2


class SourceError(SpecError):
    """A source names files or columns that do not exist."""


class MachineError(LongbatchError):
    """Something in the environment is missing or full: the disk, Java, or an optional package."""

    exit_code = 3
