"""Real logs, built by both engines and compared with the naive reference, which reads the raw files itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT, SHARED_DATA, TEST_DATA

from longbatch.jobs.build import build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.presets import load_preset
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.audit.audit import audit

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.usefixtures("spark_session")]
EXPECTED = {
    "ebnerd": {"requests": 1_046, "targets": 10_848, "users": 38, "events": 8_303},
    "git slice": {"requests": 6_827, "targets": 20_220, "users": 863, "events": 20_220},
    "git": {"requests": 118_364, "targets": 354_623, "users": 10_027, "events": 354_623},
}
AUDITED_USERS = {"ebnerd": 38, "git slice": 200, "git": 2_000}  # the reference that recomputes them is slow
GIT_LOG = SHARED_DATA / "git_activity"
LOGS = [
    "ebnerd",
    "git slice",
    pytest.param("git", marks=pytest.mark.skipif(not GIT_LOG.is_dir(), reason=f"{GIT_LOG} does not exist")),
]


def spec_of(name: str) -> BuildSpec:
    """The preset of EB-NeRD, or the example of the git log, with the paths of the real log."""
    if name == "ebnerd":
        return load_preset(name, TEST_DATA / "ebnerd")
    text = (ROOT / "examples" / "rails.toml").read_text()
    if name == "git":
        return parse_spec(text).with_paths_from(GIT_LOG)
    return parse_spec(text.replace("rails.tsv.gz", "rails_slice.tsv.gz")).with_paths_from(TEST_DATA / "git_activity")


@pytest.mark.parametrize("name", LOGS)
def test_both_engines_build_a_real_log_like_the_reference(name: str, tmp_path: Path) -> None:
    spec = spec_of(name)
    summaries = {
        "local": build(spec, tmp_path / "local", engine=LocalEngine(2)),
        "spark": build(spec, tmp_path / "spark", engine=SparkEngine()),
    }
    for engine, summary in summaries.items():
        counts = summary.counts.as_dict()
        assert {key: counts[key] for key in EXPECTED[name]} == EXPECTED[name], engine
        for rows in summary.row_accounting.values():
            assert rows.rows == rows.accepted + rows.rejected + rows.duplicate + rows.filtered
    hashes = {
        engine: content_hash(open_dataset(tmp_path / engine).blocks(), spec.history_length) for engine in summaries
    }
    assert hashes["local"] == hashes["spark"]
    audited = audit(tmp_path / "local", spec, AUDITED_USERS[name])
    assert audited.findings == []
    assert audited.users_checked == AUDITED_USERS[name]
    assert audited.requests_checked >= AUDITED_USERS[name]
