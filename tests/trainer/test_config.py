from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from longbatch.schemas.errors import SpecError
from longbatch.trainer.config import (
    FeatureType,
    ModelConfig,
    SampledLength,
    TrainConfig,
    default_feature_type,
    load_config,
    model_columns,
    validate_config,
)

TYPES = {
    "history": {"author_id": "int32", "dwell_ms": "int32", "tab": "int8"},
    "targets": {"author_id": "int32"},
    "requests": {},
    "labels": {"click": "int8", "like": "bool"},
}


@pytest.mark.parametrize(
    ("name", "stored_type", "feature_type"),
    [
        ("tab", "int8", "category"),
        ("liked", "bool", "category"),
        ("city", "int16", "category"),
        ("author_id", "int32", "id"),
        ("author_id", "int64", "id"),
        ("dwell_ms", "int32", "numeric"),
        ("size_bytes", "int64", "numeric"),
        ("ratio", "float", "numeric"),
        ("ratio_id", "double", "numeric"),
    ],
)
def test_stored_type_and_name_determine_the_feature_type(
    name: str, stored_type: str, feature_type: FeatureType
) -> None:
    assert default_feature_type(name, stored_type) == feature_type


def test_string_columns_are_rejected() -> None:
    with pytest.raises(SpecError, match="column 'title' is stored as string, which models cannot embed"):
        default_feature_type("title", "string")


def test_history_and_targets_share_the_tables_of_one_name() -> None:
    columns = model_columns(TYPES, (), ModelConfig(id_table_rows=99))
    tables = {column.table for column in (*columns.history, *columns.targets)}
    assert tables == {"author_id_id_99", "dwell_ms_numeric_163", "tab_category_256"}
    assert columns.labels == ("click", "like")


def test_a_configured_feature_type_overrides_the_default() -> None:
    config = ModelConfig(id_table_rows=99, feature_types={"dwell_ms": "id"})
    assert model_columns(TYPES, ("like",), config).history[1].table == "dwell_ms_id_99"


def test_labels_and_columns_that_the_dataset_lacks_are_rejected() -> None:
    with pytest.raises(
        SpecError, match=r"labels: \['buy'\] are not in the dataset; its labels are \['click', 'like'\]"
    ):
        model_columns(TYPES, ("buy",), ModelConfig())
    with pytest.raises(
        SpecError, match=r"feature_types: \['nope'\] are not in the dataset; its features are \['author"
    ):
        model_columns(TYPES, (), ModelConfig(feature_types={"nope": "id"}))
    with pytest.raises(SpecError, match="the dataset has no labels to predict"):
        model_columns({**TYPES, "labels": {}}, (), ModelConfig())


def test_a_width_that_heads_do_not_divide_is_rejected() -> None:
    with pytest.raises(ValidationError, match="width 32 is not a multiple of 5, `heads`"):
        ModelConfig(heads=5)
    with pytest.raises(ValidationError, match="width 6 is not a multiple of 4, the number of tokens of the head"):
        ModelConfig(width=6, heads=3)


def test_options_of_stca_are_rejected_for_other_models() -> None:
    with pytest.raises(ValidationError, match='"attention_bias" requires the model stca, found longer; remove the key'):
        ModelConfig(name="longer", time_encoding="attention_bias")
    with pytest.raises(ValidationError, match='attention = "flex" requires the model stca, found din'):
        ModelConfig(name="din", attention="flex")


def test_an_unknown_model_is_rejected() -> None:
    with pytest.raises(ValidationError, match="Input should be 'stca', 'longer', 'transformer', 'din' or 'mean'"):
        ModelConfig.model_validate({"name": "gru"})


def test_a_config_is_the_same_after_a_round_trip_through_json() -> None:
    config = TrainConfig(train_before=datetime(2024, 1, 1, tzinfo=UTC), history_length=64)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    sampled = TrainConfig(history_length=SampledLength(minimum=1, maximum=9))
    assert TrainConfig.model_validate_json(sampled.model_dump_json()) == sampled


def test_a_config_is_read_from_toml_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('batch_size = 8\nhistory_length = { minimum = 2, maximum = 9 }\n[model]\nname = "din"\n')
    config = load_config(path, max_steps=3, max_seconds=None)
    assert (config.batch_size, config.max_steps, config.max_seconds, config.model.name) == (8, 3, None, "din")
    assert config.max_history_length == 9
    assert load_config() == TrainConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bach_size": 3}, "bach_size: unknown key; did you mean `batch_size`?"),
        ({"model": {"widht": 3}}, "model.widht: unknown key; did you mean `width`?"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1 (found 0)"),
        ({"history_length": "all"}, "history_length: Input should be a valid integer"),
        ({"history_length": {"minimum": 1}}, "history_length.maximum: required key is missing; add it"),
        ({"history_length": {"minimum": 1, "maximum": 2, "betta": 1}}, "did you mean `beta`?"),
        ({"train_before": 1.5}, "train_before: a share of the requests must be between 0 and 1"),
        (
            {"accumulate": 2, "decay": "cosine"},
            "`accumulate` was renamed; write `gradient_accumulation_steps`; `decay` was renamed; write `lr_schedule`",
        ),
        ({"model": {"elapsed": "attention"}}, "model: `elapsed` was renamed; write `time_encoding`"),
    ],
)
def test_errors_name_the_key_the_value_and_what_to_do(values: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match="not a valid training config") as error:
        validate_config(values, "train.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("train.toml is ")


def test_files_that_are_not_toml_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read the training config .*none.toml: No such file"):
        load_config(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("batch_size = = 3")
    with pytest.raises(SpecError, match=r"bad\.toml is not TOML"):
        load_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=r"bad\.toml is not UTF-8 text"):
        load_config(path)
