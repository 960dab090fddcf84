"""What is wrong with a spec, in one line per error: where, what was found, what to do."""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_origin

from pydantic import BaseModel


def explain(detail: Any, root: type[BaseModel]) -> str:
    """Put one of pydantic's errors on a model `root` into words; an unknown key names the nearest known one."""
    location = tuple(str(part) for part in detail["loc"])
    where = ".".join(location) or "the spec"
    if detail["type"] == "extra_forbidden":
        model = _model_at(location[:-1], root)
        known = sorted(model.model_fields) if model else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{where}: missing; add it to the spec"
    message = str(detail["msg"]).removeprefix("Value error, ")
    found = detail.get("input")
    shown = f" (found {found!r})" if isinstance(found, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _model_at(location: tuple[str, ...], root: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model that a path of keys leads to: fields by name, tables of named models by any key."""
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


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model within a type such as `Explode | None` or `dict[str, Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
