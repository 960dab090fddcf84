"""Real logs, built by both engines and compared with the naive reference straight from the raw files."""

from pathlib import Path

import pytest

from longbatch.jobs.build import build
from longbatch.jobs.local import LocalEngine
from longbatch.jobs.spark import SparkEngine
from longbatch.pipelines.content import content_hash
from longbatch.schemas.dataset import open_dataset
from longbatch.schemas.spec import BuildSpec, load_spec
from longbatch.validation.audit import audit

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
EXPECTED = {
    "rails": {"requests": 118_364, "targets": 354_623, "users": 10_027, "events": 354_623},
    "ebnerd": {"requests": 1_046, "targets": 10_848, "users": 38, "events": 8_303},
}
FOLDERS = {"rails": "git_activity", "ebnerd": "ebnerd"}
ALL_USERS = None

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real logs are not at {DATA}")


def spec_of(name: str) -> BuildSpec:
    """The example's spec, its paths taken from the folder of the real log."""
    spec = load_spec(ROOT / "examples" / f"{name}.toml")
    sources = {
        source: entry.model_copy(update={"path": tuple(str(DATA / FOLDERS[name] / Path(p).name) for p in entry.path)})
        for source, entry in spec.sources.items()
    }
    return spec.model_copy(update={"sources": sources})


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
        for ledger in summary.ledgers.values():
            assert ledger.rows == ledger.accepted + ledger.rejected + ledger.duplicate + ledger.filtered
    hashes = {engine: content_hash(open_dataset(tmp_path / engine).blocks(), spec.history_length) for engine in built}
    assert hashes["local"] == hashes["spark"]
    found = audit(tmp_path / "local", spec, ALL_USERS)
    assert found.findings == []
    assert found.users_checked == EXPECTED[name]["users"]
    assert found.requests_checked == EXPECTED[name]["requests"]
