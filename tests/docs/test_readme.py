"""What the README shows runs: its spec builds, its loop yields batches."""

import re
from pathlib import Path

import polars as pl
import pytest
from paths import ROOT

from longbatch.jobs.build import build
from longbatch.schemas.spec.build_spec import load_spec

README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The README's first code block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


def test_the_spec_and_the_loop_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log").mkdir()
    pl.DataFrame(
        {
            "user_id": [1, 1, 2],
            "item_id": [10, 11, 10],
            "event_time": [1_700_000_001_000, 1_700_000_100_000, 1_700_000_002_000],
            "request_time": [1_700_000_000_000, 1_700_000_090_000, 1_700_000_000_000],
            "request_id": [1, 2, 3],
            "author_id": [5, 6, 5],
            "dwell_ms": [900, 100, 0],
            "click": [1, 0, 0],
        }
    ).write_parquet("log/day.parquet")
    Path("spec.toml").write_text(block("toml"))
    summary = build(load_spec("spec.toml"), "dataset")
    assert (summary.counts.requests, summary.counts.targets, summary.counts.stored) == (3, 3, 1)
    code = block("python").replace("num_workers=2", "num_workers=0")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    batch = names["batch"]
    assert batch.num_requests == 3  # type: ignore[attr-defined]
    assert batch.history["item_id"].tolist() == [10]  # type: ignore[attr-defined]
