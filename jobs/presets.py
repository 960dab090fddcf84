"""Presets: build specs of public datasets that are part of the package, listed, printed and loaded by name.

A preset is an ordinary spec whose paths are relative to RAW, the folder of the raw files. Its first two lines are
comments for readers: what the dataset is, and where to download it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec

PREFIX = "preset:"
SUFFIX = ".toml"


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    file_names = (entry.name for entry in files("longbatch").joinpath("presets").iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in file_names if name.endswith(SUFFIX))


def preset_toml(name: str) -> str:
    """Return the spec of a preset as TOML.

    Raises:
        SpecError: There is no such preset. The message names the closest match.
    """
    names = preset_names()
    if name not in names:
        matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {matches[0]!r}?" if matches else ""
        raise SpecError(f"unknown preset {name!r}.{hint} The presets are {', '.join(names)}.")
    return files("longbatch").joinpath("presets", name + SUFFIX).read_text(encoding="utf-8")


def describe_preset(name: str) -> tuple[str, str]:
    """Return two sentences about a preset: what its dataset is, and where its raw files come from."""
    about, download = (line.removeprefix("# ") for line in preset_toml(name).splitlines()[:2])
    return about, download


def load_preset(name: str, raw: str | os.PathLike[str]) -> BuildSpec:
    r"""Return the build spec of a public dataset whose raw files are in the folder `raw`.

    Args:
        name: The name of the preset, such as "movielens". `longbatch presets` lists them.
        raw: The folder of the raw files as published.

    Raises:
        SpecError: There is no such preset.
        SourceError: Files are missing in `raw`. The message names them and where to download them.

    Example:
        >>> import longbatch as lb
        >>> from pathlib import Path
        >>> _ = Path("ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.5,964982703\n")
        >>> spec = lb.load_preset("movielens", ".")
        >>> lb.build(spec, "movielens").counts.requests
        1
    """
    spec, folder = parse_spec(preset_toml(name), PREFIX + name), Path(raw).resolve()
    download = describe_preset(name)[1]
    if not folder.is_dir():
        raise SourceError(f"preset {name}: {os.fspath(raw)} is not a folder. {download}")
    if missing := list(_missing_paths(spec, folder)):
        raise SourceError(f"preset {name}: {os.fspath(raw)} lacks {', '.join(missing)}. {download}")
    return spec.with_paths_from(folder)


def _missing_paths(spec: BuildSpec, folder: Path) -> Iterator[str]:
    """Yield the paths of a spec that no file of the folder matches."""
    for source in spec.sources.values():
        yield from (path for path in source.path if not any(folder.glob(path)))
