from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from training_data import DAY, START, tiny

from longbatch.schemas.errors import DataError, DatasetError, SpecError
from longbatch.trainer import checkpoint
from longbatch.trainer.config import Length, TrainConfig
from longbatch.trainer.models.registry import MODELS, make_model
from longbatch.trainer.models.stca import STCA
from longbatch.trainer.optimizers import dense_parameters, make_optimizers
from longbatch.trainer.predictions import predict
from longbatch.trainer.train import evaluate, fit, train, train_step


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """(run folder, report, progress) of one training run."""
    run, seen = tmp_path_factory.mktemp("run"), []
    return run, train(dataset, run, tiny(), progress=seen.append), seen


def test_a_planted_signal_is_learnt_and_holds_on_newer_requests(trained):
    _, report, _ = trained
    click, like = report.metrics
    assert (click["label"], like["label"]) == ("click", "like")
    assert click["auc"] > 0.95
    assert click["ne"] < 0.8
    assert abs(like["auc"] - 0.5) < 0.15
    assert report.losses[-1][1] < report.losses[0][1]
    assert click["history_length"] == 16


def test_a_run_on_shared_timelines_reads_fewer_events_and_learns_as_well(trained, dataset, tmp_path):
    model = tiny().model.model_copy(update={"elapsed": "attention"})
    report = train(dataset, tmp_path, tiny(model=model, shuffle_run=8))
    assert report.metrics[0]["auc"] > 0.95
    assert report.targets == trained[1].targets
    assert report.events < trained[1].events / 2


def test_the_report_counts_what_was_done(trained):
    run, report, seen = trained
    assert report.train_before == (START + DAY * 12).isoformat()
    assert report.targets == 4 * 40 * 12 * 4
    assert report.steps == 4 * (40 * 12 // 16)
    assert report.stopped_by == "epochs"
    assert report.metrics[0]["targets"] == 40 * 4 * 4
    assert report.targets_per_second > 0
    assert [p.stage for p in seen] == ["train"] * (report.steps // 10) + ["evaluate"] * 3
    assert seen[0].total_steps == report.steps
    assert json.loads((run / "report.json").read_text())["steps"] == report.steps


def test_evaluating_a_run_again_gives_the_metrics_of_its_report(trained, dataset):
    run, report, _ = trained
    assert evaluate(run, dataset) == report.metrics


def test_a_run_is_evaluated_at_any_history_length(trained, dataset):
    run, report, _ = trained
    results = evaluate(run, dataset, history_lengths=[16, 0, 4])
    assert [(r["history_length"], r["label"]) for r in results] == [
        (length, label) for length in (0, 4, 16) for label in ("click", "like")
    ]
    assert results[4:] == report.metrics
    assert results[2:4] == evaluate(run, dataset, history_lengths=[4])
    assert results[0]["auc"] < results[2]["auc"]


def test_a_time_range_chooses_the_requests_evaluated(trained, dataset):
    run, _, _ = trained
    results = evaluate(run, dataset, after=START + DAY * 2, before=START + DAY * 5)
    assert results[0]["targets"] == 40 * 3 * 4
    with pytest.raises(DatasetError, match="has no targets from"):
        evaluate(run, dataset, after=START + DAY * 100)


def test_the_same_config_trains_the_same_model(dataset, tmp_path):
    config = tiny(max_steps=5, history_length=Length(minimum=0, maximum=16))
    reports = [train(dataset, tmp_path / name, config) for name in "ab"]
    assert reports[0].losses == reports[1].losses
    assert reports[0].metrics == reports[1].metrics
    other = train(dataset, tmp_path / "c", config.model_copy(update={"seed": 1}))
    assert other.losses != reports[0].losses


def test_training_stops_at_its_budget_of_steps_or_seconds(make_batch, small_model):
    def endless():
        while True:
            yield make_batch([5, 0], [2, 3])

    assert fit(STCA(*small_model), endless(), TrainConfig(max_steps=3)).steps == 3
    report = fit(STCA(*small_model), endless(), TrainConfig(max_seconds=0.05))
    assert report.stopped_by == "max_seconds"
    assert report.targets == report.steps * 5


def test_padding_batches_leave_training_unharmed(make_batch, small_model):
    batches = [make_batch([5, 0], [2, 3]), make_batch([], []), make_batch([5, 0], [2, 3])]
    report = fit(STCA(*small_model), batches, TrainConfig())
    assert report.targets == 10
    assert np.isfinite(report.losses[0][1])


def test_labels_other_than_zero_and_one_are_refused(make_batch, small_model):
    batch = make_batch([3], [2])
    batch.labels["click"][:] = torch.tensor([0, 2])
    with pytest.raises(SpecError, match="label 'click' has values other than 0 and 1, from 0 to 2"):
        fit(STCA(*small_model), [batch], TrainConfig())


def test_a_loss_that_is_not_finite_stops_training(make_batch, small_model):
    model = STCA(*small_model)
    torch.nn.init.constant_(model.head.logits.bias, float("nan"))
    with pytest.raises(DataError, match="the loss is nan at step 1"):
        fit(model, [make_batch([3], [2])], TrainConfig())


def test_every_parameter_has_one_optimiser_and_large_tables_the_sparse_one(small_model):
    model = STCA(*small_model)
    dense, sparse = make_optimizers(model, TrainConfig())
    sizes = [p for o in (dense, sparse) for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, sizes)) == sorted(map(id, model.parameters()))
    assert all(p.shape[0] == 5000 for p in sparse.param_groups[0]["params"])
    decays = {g["weight_decay"]: len(g["params"]) for g in dense.param_groups if g["weight_decay"]}
    assert decays == {0.01: sum(p.ndim > 1 for n, p in model.named_parameters() if "tables" not in n)}


def test_no_targets_make_undefined_metrics_not_an_error(small_model):
    scores = predict(STCA(*small_model), [], [8])
    assert scores.num_targets == 0
    assert np.isnan(scores.metrics(8, "like")["auc"])


def test_a_config_that_the_dataset_cannot_meet_is_refused(dataset, tmp_path):
    with pytest.raises(SpecError, match=r"labels \['buy'\] are not in the dataset"):
        train(dataset, tmp_path, tiny(labels=("buy",)))
    with pytest.raises(SpecError, match="history_length 500 is not between 0 and 16"):
        train(dataset, tmp_path, tiny(history_length=500))
    with pytest.raises(DatasetError, match="has no requests before 2023-12-31"):
        train(dataset, tmp_path, tiny(train_before=START - DAY))
    with pytest.raises(ValidationError, match="a share of the requests lies between 0 and 1"):
        tiny(train_before=1.5)


def test_training_on_everything_reports_no_metrics(dataset, tmp_path):
    report = train(dataset, tmp_path, tiny(train_before=None, max_steps=2, labels=("like",)))
    assert (report.metrics, report.train_before, report.stopped_by) == ([], None, "max_steps")
    assert evaluate(tmp_path, dataset)[0]["targets"] == 40 * 16 * 4


def test_a_checkpoint_that_is_missing_damaged_or_of_another_version_is_refused(trained, dataset, tmp_path):
    run, _, _ = trained
    with pytest.raises(DatasetError, match="is not there; train first"):
        evaluate(tmp_path, dataset)
    content = (run / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="is damaged"):
        checkpoint.load(tmp_path)
    torch.save({"version": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(DatasetError, match="has version 99, and this longbatch reads version 3"):
        checkpoint.load(tmp_path)
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(DatasetError, match="is no checkpoint of longbatch"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_of_other_weights_than_the_model_has_is_refused(trained, tmp_path):
    content = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    content["model"]["final.down.weight"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(
        DatasetError, match=r"(?s)other weights than stca has in this longbatch; train again.*size mismatch"
    ):
        checkpoint.load(tmp_path)


def test_a_run_goes_on_with_another_kind_of_attention(dataset, tmp_path):
    train(dataset, tmp_path, tiny(max_steps=2))
    other = tiny(max_steps=3)
    other = other.model_copy(update={"model": other.model.model_copy(update={"attention": "flex"})})
    assert train(dataset, tmp_path, other, resume=True).steps == 3
    assert checkpoint.load(tmp_path).config.model.attention == "flex"


def test_a_failed_save_leaves_the_older_checkpoint(trained, tmp_path, monkeypatch):
    run = checkpoint.load(trained[0])
    path = checkpoint.save(run, tmp_path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(run, tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_loaded_run_is_the_saved_one(trained, tmp_path):
    run = checkpoint.load(trained[0])
    checkpoint.save(run, tmp_path)
    again = checkpoint.load(tmp_path)
    assert (again.config, again.evaluate_from_us, again.steps) == (
        run.config,
        run.evaluate_from_us,
        run.steps,
    )
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def interrupt(progress):
    """Press Ctrl-C at the 10th step."""
    if progress.step == 10:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [7, 35])
def test_a_resumed_run_is_to_the_bit_the_one_that_never_stopped(dataset, tmp_path, stop):
    config = tiny(max_steps=40, train_before=0.8, evaluate_requests=16, history_length=Length(minimum=0, maximum=16))
    whole = train(dataset, tmp_path / "whole", config)
    train(dataset, tmp_path / "parts", config.model_copy(update={"max_steps": stop}))
    torch.manual_seed(123)
    resumed = train(dataset, tmp_path / "parts", config, resume=True)
    assert (resumed.steps, resumed.metrics) == (whole.steps, whole.metrics)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    assert same(states[0]["model"], states[1]["model"])
    assert same(states[0]["optimizers"], states[1]["optimizers"])


def same(a, b):
    """Whether two nested states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_ctrl_c_saves_after_the_step_at_hand_and_the_run_goes_on(dataset, tmp_path):
    report = train(dataset, tmp_path, tiny(max_steps=20), progress=interrupt)
    assert report.stopped_by == "interrupt"
    assert report.metrics == []
    assert checkpoint.load(tmp_path).steps == report.steps == 11
    assert train(dataset, tmp_path, tiny(max_steps=20), resume=True).steps == 20


def test_checkpoints_are_saved_on_the_way(dataset, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(checkpoint, "save", lambda run, _: steps.append(run.steps))
    train(dataset, tmp_path, tiny(max_steps=5, checkpoint_steps=2, train_before=None))
    assert steps == [2, 4, 5]


def test_the_newest_checkpoints_are_kept(dataset, tmp_path):
    config = tiny(max_steps=9, checkpoint_steps=2, keep_checkpoints=3, train_before=None)
    train(dataset, tmp_path, config)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "checkpoint-000000006.pt",
        "checkpoint-000000008.pt",
        "checkpoint.pt",
    ]
    assert [checkpoint.load(tmp_path / name).steps for name in ("checkpoint-000000006.pt", "checkpoint.pt")] == [6, 9]


def test_a_step_that_is_saved_twice_is_kept_once(dataset, tmp_path):
    train(dataset, tmp_path, tiny(max_steps=8, checkpoint_steps=2, keep_checkpoints=2, train_before=None))
    kept = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert kept == ["checkpoint-000000006.pt", "checkpoint.pt"]
    assert checkpoint.load(tmp_path).steps == 8


def test_weights_of_a_loss_that_is_not_finite_are_not_saved(dataset, tmp_path, monkeypatch):
    calls = []

    def poisoned(model, *arguments):
        done = train_step(model, *arguments)
        calls.append(done)
        if len(calls) == 4:
            torch.nn.init.constant_(model.head.logits.bias, float("nan"))
        return done

    monkeypatch.setattr("longbatch.trainer.train.train_step", poisoned)
    with pytest.raises(DataError, match="the loss is nan at step 6"):
        train(dataset, tmp_path, tiny(checkpoint_steps=3, train_before=None))
    assert checkpoint.load(tmp_path).steps == 3


def test_a_folder_that_holds_a_run_is_not_trained_in_anew(trained, dataset):
    with pytest.raises(SpecError, match="holds a run; go on from it with --resume, or choose another folder"):
        train(dataset, trained[0], tiny())


def test_the_report_says_how_long_it_waited_for_batches(trained):
    _, report, seen = trained
    assert 0 < report.waiting_seconds < report.seconds
    assert report.events == 4 * 40 * sum(range(1, 13))
    assert 0 < seen[0].waiting < 1


def test_a_run_with_a_schedule_goes_on_to_the_bit(dataset, tmp_path):
    config = tiny(epochs=1, warmup_steps=5, decay="cosine", accumulate=2, train_before=None)
    train(dataset, tmp_path / "whole", config)
    first = train(dataset, tmp_path / "parts", config.model_copy(update={"checkpoint_steps": 3}), progress=interrupt)
    assert first.stopped_by == "interrupt"
    train(dataset, tmp_path / "parts", config, resume=True)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    assert same(states[0]["model"], states[1]["model"])
    assert same(states[0]["optimizers"], states[1]["optimizers"])


def test_a_run_at_its_end_is_not_trained_further(dataset, tmp_path):
    config = tiny(max_steps=3, train_before=None)
    train(dataset, tmp_path, config)
    report = train(dataset, tmp_path, config, resume=True)
    assert (report.steps, report.targets, report.stopped_by) == (3, 0, "max_steps")


def test_a_run_is_resumed_only_as_it_was_begun(trained, dataset, tmp_path):
    with pytest.raises(SpecError, match="was trained with another batch_size, learning_rate; resume it with the same"):
        train(dataset, trained[0], tiny(batch_size=8, learning_rate=1e-3), resume=True)
    run = checkpoint.load(trained[0])
    checkpoint.save(replace(run, fingerprint="another"), tmp_path)
    with pytest.raises(SpecError, match="was trained on another dataset"):
        train(dataset, tmp_path, tiny(), resume=True)
    with pytest.raises(DatasetError, match="is not there; train first"):
        train(dataset, tmp_path / "none", tiny(), resume=True)
    with pytest.raises(SpecError, match="was trained on requests up to another time"):
        train(dataset, trained[0], tiny(evaluate_before=START + 9 * DAY), resume=True)
    checkpoint.save(replace(run, random=(*run.random, *run.random)), tmp_path)
    with pytest.raises(SpecError, match="was trained on 2 ranks, and there are 1; use as many"):
        train(dataset, tmp_path, tiny(), resume=True)
    for changes, name in (({"decay": "cosine"}, "epochs, max_steps"), ({"accumulate": 2}, "epochs")):
        checkpoint.save(replace(run, config=tiny(**changes)), tmp_path)
        with pytest.raises(SpecError, match=f"was trained with another {name};"):
            train(dataset, tmp_path, tiny(epochs=9, max_steps=99, **changes), resume=True)


def test_clipping_bounds_the_gradients_of_dense_weights(make_batch, small_model):
    config = TrainConfig(clip_norm=0.01)
    model = STCA(*small_model)
    train_step(model, make_optimizers(model, config), [make_batch([9, 3], [2, 3])], config)
    norms = torch.stack([parameter.grad.norm() for parameter in dense_parameters(model)])
    assert norms.norm() == pytest.approx(0.01, rel=1e-3)
    assert any(table.weight.grad.is_sparse for table in model.tokens.tables.values())


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_trains_nearly_as_float32_does(make_batch, small_model, name):
    losses = {}
    for bf16 in (False, True):
        config = TrainConfig(bf16=bf16, max_steps=3)
        torch.manual_seed(0)
        model = make_model(small_model[0].model_copy(update={"name": name}), small_model[1])
        losses[bf16] = fit(model, [make_batch([70, 0, 9], [2, 3, 4])] * 3, config).losses[-1][1]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_gauc_by_request_groups_the_targets_of_each_request(make_batch, small_model):
    scores = predict(STCA(*small_model), [make_batch([3, 2], [2, 3]), make_batch([4], [4])], [8])
    assert scores.requests.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    ranked = replace(
        scores,
        logits={8: np.array([[1, 2, 1, 2, 2, 4, 3, 2, 1], [0] * 9], dtype=np.float32).T},
        labels={"click": np.array([0, 1, 0, 0, 1, 1, 1, 1, 1], dtype=np.float32), "like": scores.labels["like"]},
    )
    # request 0: 1.0 by 2 targets; request 1: 0.75 by 3, one of its two pairs a tie; request 2 has one class only
    assert ranked.metrics(8, "click")["gauc_by_request"] == pytest.approx((2 * 1.0 + 3 * 0.75) / 5)


def test_metrics_are_told_apart_by_the_length_of_histories(make_batch, small_model):
    scores = predict(STCA(*small_model), [make_batch([0, 99, 100], [2, 3, 4]), make_batch([600], [5])], [1_000])
    rows = scores.by_history(1_000, "click")
    assert [(row["events"], row["targets"]) for row in rows] == [("0-99", 5), ("100-499", 4), ("500-1999", 5)]
    whole = scores.metrics(1_000, "click")
    assert sum(r["log_loss"] * r["targets"] for r in rows) == pytest.approx(whole["log_loss"] * whole["targets"])


def test_evaluation_can_tell_requests_apart_by_their_history(trained, dataset):
    run, report, _ = trained
    (click, like) = evaluate(run, dataset, by_history=True)
    assert (click.pop("events"), like.pop("events")) == ("0-99", "0-99")
    assert [click, like] == report.metrics
