"""The errors users meet: each says what was found, where, and what to do.

Every error takes one argument, so that it survives pickling between processes.
The exit code of the command line is the error's class attribute.
"""

from __future__ import annotations


class LongbatchError(Exception):
    """Base of every error longbatch raises on purpose."""

    exit_code = 1


class DataError(LongbatchError):
    """The input data failed a check; nothing was committed."""


class DatasetError(LongbatchError):
    """A dataset on disk is missing, short, altered or of an unknown version."""


class SpecError(LongbatchError):
    """The build spec, or an argument, cannot be meant as written."""

    exit_code = 2


class SourceError(SpecError):
    """A source names files or columns that are not there."""


class MachineError(LongbatchError):
    """Something of the environment is missing or full: disk, Java, an optional package."""

    exit_code = 3
