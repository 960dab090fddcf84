"""TOML, which the standard library of Python 3.10 lacks."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOMLError = tomllib.TOMLDecodeError


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document.

    Args:
        text: The document.

    Returns:
        Its keys and values.

    Raises:
        TOMLError: The text is not TOML.
    """
    return tomllib.loads(text)
