"""The logs of the version matrix."""

from __future__ import annotations

from pathlib import Path

from longbatch.jobs.build import build
from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.presets import load_preset
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec, parse_spec

from .checks import hash_of

ROOT = Path(__file__).resolve().parents[1]
LOGS = ("rails", "EB-NeRD", "simulated")


def spec_of(log: str, simulated: Path) -> BuildSpec:
    """Return the spec of a log.

    Args:
        log: One of LOGS.
        simulated: Folder of the simulated log.
    """
    data = ROOT / "tests" / "data"
    if log == "EB-NeRD":
        return load_preset("ebnerd", data / "ebnerd")
    if log == "rails":
        text = (ROOT / "examples" / "rails.toml").read_text(encoding="utf-8")
        return parse_spec(text.replace("rails.tsv.gz", "rails_slice.tsv.gz")).with_paths_from(data / "git_activity")
    return load_spec(simulated / "spec.toml")


def build_hash(log: str, simulated: Path, out: Path, engine: Engine | None) -> str:
    """Build a log and return the content hash of the dataset.

    Args:
        log: One of LOGS.
        simulated: Folder of the simulated log.
        out: Folder of the dataset, which is replaced.
        engine: Where to build; None for the local engine.
    """
    build(spec_of(log, simulated), out, engine=engine, overwrite=True)
    return hash_of(out)
