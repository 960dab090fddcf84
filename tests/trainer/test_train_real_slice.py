from __future__ import annotations

from pathlib import Path

from paths import TEST_DATA

from longbatch.jobs.build import build
from longbatch.jobs.presets import load_preset
from longbatch.trainer.config import ModelConfig, TrainConfig
from longbatch.trainer.evaluate import evaluate
from longbatch.trainer.train import train


def test_a_real_log_is_built_trained_on_and_evaluated(tmp_path: Path) -> None:
    build(load_preset("ebnerd", TEST_DATA / "ebnerd"), tmp_path / "dataset")
    model = ModelConfig(width=16, heads=2, id_table_rows=512)
    config = TrainConfig(model=model, history_length=100, batch_size=32, max_steps=12)
    report = train(tmp_path / "dataset", tmp_path / "run", config)
    assert report.steps == 12
    assert report.losses[-1][1] < 0.69
    metrics = evaluate(tmp_path / "run", tmp_path / "dataset", history_lengths=[10, 700])
    assert [row["history_length"] for row in metrics] == [10, 700]
    assert {row["targets"] for row in metrics} == {2_040}
    assert all(0.3 < row["auc"] < 0.8 for row in metrics)
