"""Real logs, built by both engines and compared with the naive reference straight from the raw files."""

from pathlib import Path

import pytest
from paths import ROOT

from longbatch.jobs.build import build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.presets import load_preset
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.audit.audit import audit

DATA = ROOT.parent / "shared" / "data"
EXPECTED = {
    "rails": {"requests": 118_364, "targets": 354_623, "users": 10_027, "events": 354_623},
    "ebnerd": {"requests": 1_046, "targets": 10_848, "users": 38, "events": 8_303},
}
AUDITED_USERS = {"rails": 2_000, "ebnerd": 38}  # the slow reference recomputes them

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real logs are not at {DATA}")


def spec_of(name: str) -> BuildSpec:
    """The preset of EB-NeRD, or the example of the git log, with the paths of the real log."""
    if name == "ebnerd":
        return load_preset(name, DATA / "ebnerd")
    return parse_spec((ROOT / "examples" / "rails.toml").read_text()).with_paths_from(DATA / "git_activity")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_log_is_built_alike_by_both_engines_and_agrees_with_the_reference(name: str, tmp_path: Path) -> None:
    spec = spec_of(name)
    built = {
        "local": build(spec, tmp_path / "local", engine=LocalEngine(2)),
        "spark": build(spec, tmp_path / "spark", engine=SparkEngine("local[2]")),
    }
    for engine, summary in built.items():
        counts = summary.counts.as_dict()
        assert {key: counts[key] for key in EXPECTED[name]} == EXPECTED[name], engine
        for accounting in summary.row_accounting.values():
            assert (
                accounting.rows
                == accounting.accepted + accounting.rejected + accounting.duplicate + accounting.filtered
            )
    hashes = {engine: content_hash(open_dataset(tmp_path / engine).blocks(), spec.history_length) for engine in built}
    assert hashes["local"] == hashes["spark"]
    found = audit(tmp_path / "local", spec, AUDITED_USERS[name])
    assert found.findings == []
    assert found.users_checked == AUDITED_USERS[name]
    assert found.requests_checked >= AUDITED_USERS[name]
