"""Error messages for an invalid spec: one line per error with the key, what is wrong, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeAlias, get_args, get_origin

from pydantic import BaseModel, ValidationError

# A location is the path of keys to a value, for example ("sources", "log", "explode", "text").
Location: TypeAlias = tuple[str, ...]

# Keys that were renamed, by the key and what it is below: (last key of the parent or None for any, old key) -> new key.
RENAMED_KEYS: Mapping[tuple[str | None, str], str] = {
    (None, "made_time"): "synthetic_time",
    ("explode", "text"): "string",
}


def renamed_key(location: Location) -> str | None:
    """Look up what an unknown key is called today.

    Args:
        location: Path of the key in the spec.

    Returns:
        The new key, or None if the key was never known.

    Example:
        >>> renamed_key(("sources", "log", "made_time"))
        'synthetic_time'
    """
    parent = location[-2] if len(location) > 1 else None
    return RENAMED_KEYS.get((parent, location[-1])) or RENAMED_KEYS.get((None, location[-1]))


def has_renamed_keys(error: ValidationError) -> bool:
    """Return whether a spec was refused because of a key that was renamed."""
    details = error.errors()
    return any(d["type"] == "extra_forbidden" and renamed_key(tuple(map(str, d["loc"]))) for d in details)


def explain(detail: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Describe one of pydantic's errors in a line; an unknown key names its new name or the most similar known key.

    Args:
        detail: One element of `ValidationError.errors()`.
        root: The model that was validated.

    Returns:
        The key, what is wrong, and what was found or what to write.
    """
    location = tuple(str(part) for part in detail["loc"])
    where = ".".join(location) or "the spec"
    if detail["type"] == "extra_forbidden":
        return f"{where}: {_explain_unknown_key(location, root)}"
    if detail["type"] == "missing":
        return f"{where}: required key is missing; add it to the spec"
    message = str(detail["msg"]).removeprefix("Value error, ")
    value = detail.get("input")
    shown = f" (found {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _explain_unknown_key(location: Location, root: type[BaseModel]) -> str:
    new_key = renamed_key(location)
    if new_key:
        return f"this key was renamed; write `{new_key}`"
    model = _model_at(location[:-1], root)
    known_keys = sorted(model.model_fields) if model else []
    similar = difflib.get_close_matches(location[-1], known_keys, n=1, cutoff=0.5)
    return (
        f"unknown key; did you mean `{similar[0]}`?" if similar else f"unknown key; known keys: {', '.join(known_keys)}"
    )


def _model_at(location: Location, root: type[BaseModel]) -> type[BaseModel] | None:
    """The model at a path of keys; in a table of named models, such as `sources`, the name is skipped."""
    model: type[BaseModel] | None = root
    parts = iter(location)
    for part in parts:
        if model is None or part not in model.model_fields:
            return None
        annotation = model.model_fields[part].annotation
        if get_origin(annotation) is dict:
            next(parts, None)
        model = _model_in(annotation)
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The first model within a type such as `Explode | None` or `dict[str, Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
