from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from longbatch.schemas.errors import SpecError
from longbatch.trainer.config import ModelConfig, TrainConfig, column_kind, model_columns

TYPES = {
    "history": {"author_id": "int32", "dwell_ms": "int32", "tab": "int8"},
    "targets": {"author_id": "int32"},
    "requests": {},
    "labels": {"click": "int8", "like": "bool"},
}


@pytest.mark.parametrize(
    ("name", "stored", "kind"),
    [
        ("tab", "int8", "category"),
        ("liked", "bool", "category"),
        ("city", "int16", "category"),
        ("author_id", "int32", "id"),
        ("author_id", "int64", "id"),
        ("dwell_ms", "int32", "measure"),
        ("size_bytes", "int64", "measure"),
        ("ratio", "float", "measure"),
        ("ratio_id", "double", "measure"),
    ],
)
def test_the_kind_of_a_column_follows_from_type_and_name(name, stored, kind):
    assert column_kind(name, stored) == kind


def test_text_columns_are_refused():
    with pytest.raises(SpecError, match="column 'title' is stored as string"):
        column_kind("title", "string")


def test_history_and_targets_share_the_tables_of_one_name():
    columns = model_columns(TYPES, (), ModelConfig(id_rows=99))
    tables = {column.table for column in (*columns.history, *columns.targets)}
    assert tables == {"author_id_id_99", "dwell_ms_measure_163", "tab_category_256"}
    assert columns.labels == ("click", "like")


def test_a_given_kind_overrules_the_default():
    config = ModelConfig(id_rows=99, kinds={"dwell_ms": "id"})
    assert model_columns(TYPES, ("like",), config).history[1].table == "dwell_ms_id_99"


def test_unknown_labels_kinds_and_keys_are_refused():
    with pytest.raises(SpecError, match=r"labels \['buy'\] are not in the dataset, which has \['click', 'like'\]"):
        model_columns(TYPES, ("buy",), ModelConfig())
    with pytest.raises(SpecError, match=r"kinds names \['nope'\]"):
        model_columns(TYPES, (), ModelConfig(kinds={"nope": "id"}))
    with pytest.raises(SpecError, match="the dataset has no labels"):
        model_columns({**TYPES, "labels": {}}, (), ModelConfig())
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainConfig(widht=3)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValidationError, match="width 32 is no multiple of 5, which heads need"):
        ModelConfig(heads=5)
    with pytest.raises(ValidationError, match="width 6 is no multiple of 4"):
        ModelConfig(width=6, heads=3)


def test_a_config_survives_its_json():
    config = TrainConfig(train_before=datetime(2024, 1, 1, tzinfo=UTC), history_length=64)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
