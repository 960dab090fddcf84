"""Presets: build specs of public datasets that ship with the package, listed, shown and loaded by name.

A preset is a spec like any other whose paths start at RAW, the folder of the raw files. Its first two lines are
comments for people: what the dataset is, and where RAW comes from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec

PREFIX = "preset:"
SUFFIX = ".toml"


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    found = (entry.name for entry in files("longbatch").joinpath("presets").iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))


def preset_text(name: str) -> str:
    """The spec of a preset as TOML. Raises SpecError naming the nearest preset."""
    known = preset_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" did you mean {near[0]}?" if near else ""
        raise SpecError(f"there is no preset {name!r};{hint} known are {', '.join(known)}")
    return files("longbatch").joinpath("presets", name + SUFFIX).read_text(encoding="utf-8")


def about_preset(name: str) -> tuple[str, str]:
    """What the dataset of a preset is, and where its raw files come from: a sentence each."""
    what, raw = (line.removeprefix("# ") for line in preset_text(name).splitlines()[:2])
    return what, raw


def load_preset(name: str, raw: str | Path) -> BuildSpec:
    """The spec of a preset, its paths in the folder `raw`.

    Raises SpecError for an unknown name, and SourceError naming the files that `raw` lacks and where they come from.
    """
    spec, folder = parse_spec(preset_text(name), PREFIX + name), Path(raw).resolve()
    if not folder.is_dir():
        raise SourceError(f"preset {name}: {raw} is no folder; {about_preset(name)[1]}")
    if missing := list(_missing(spec, folder)):
        raise SourceError(f"preset {name}: {raw} has no {', no '.join(missing)}; {about_preset(name)[1]}")
    return spec.with_paths_from(folder)


def _missing(spec: BuildSpec, folder: Path) -> Iterator[str]:
    """The paths of a spec that no file of the folder matches."""
    for source in spec.sources.values():
        yield from (path for path in source.path if not any(folder.glob(path)))
