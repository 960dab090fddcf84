"""The configuration of a training run, as frozen models that are stored in its checkpoint. Imports no torch.

How a column becomes part of a token, its feature type (`default_feature_type`), follows from its stored type and its
name alone:

| stored type | name | feature type |
|---|---|---|
| bool, int8 | any | category: a table of 256 rows, no collisions |
| int16 | any | category: a table of 4,096 rows, the value modulo its size |
| int32, int64 | ends in a unit: _ms, _us, _s, _seconds, _minutes, _hours, _days, _bytes, _count | numeric |
| int32, int64 | any other | id: hashed into a table of `id_table_rows` rows |
| float, double | any | numeric: two logarithmic bins per octave |

`ModelConfig.feature_types` overrides it by column name. String columns are not read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.messages import explain
from longbatch.schemas.storage.open_store import FileLocation, read_file

FeatureType = Literal["id", "category", "numeric"]
ModelName = Literal["stca", "longer", "transformer", "din", "mean"]
ColumnTypes = Mapping[str, Mapping[str, str]]

UNIT_SUFFIXES = ("_ms", "_us", "_s", "_seconds", "_minutes", "_hours", "_days", "_bytes", "_count")
CATEGORY_ROWS = {"bool": 256, "int8": 256, "int16": 4_096}
NUMERIC_ROWS = 2 * 81 + 1  # zero and 80 magnitudes (2^-10 to 2^30, two an octave) of each sign, and NaN
HEAD_TOKENS = 4  # z, target, user and request; RankMixer splits the width into as many parts
UNION_TAGS = frozenset({"number", "range", "float", "datetime"})  # parts of an error's location that are not keys


class StrictModel(BaseModel):
    """A frozen model that rejects unknown keys and names the new key where one was renamed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed_keys: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _reject_renamed_keys(cls, values: object) -> object:
        renamed = [key for key in cls.renamed_keys if isinstance(values, Mapping) and key in values]
        if renamed:
            raise ValueError("; ".join(f"`{key}` was renamed; write `{cls.renamed_keys[key]}`" for key in renamed))
        return values


class Column(StrictModel):
    """A feature and the embedding table it reads. Columns of the same name, feature type and size share a table.

    Attributes:
        name: The column's name in the dataset.
        feature_type: How its values are mapped to rows of the table.
        rows: Number of rows of the table.
    """

    name: str
    feature_type: FeatureType
    rows: int = Field(ge=1)

    @property
    def table(self) -> str:
        """The name of the table."""
        return f"{self.name}_{self.feature_type}_{self.rows}"


class ModelConfig(StrictModel):
    """Which model, and its size.

    Attributes:
        name: The model; see `models.registry`.
        width: Width D of all tokens, a multiple of `heads` and of 4, the number of tokens of the head.
        heads: Attention heads. DIN and mean pooling do not use them.
        layers: Layers. DIN and mean pooling do not use them.
        expansion: Hidden units per unit of width in feed-forward maps.
        head: How logits are computed from the tokens of a target; see `models.head`.
        time_encoding: Where STCA encodes the time from event to request: in the event token, as published
            ("event_feature"), or as a bias of the attention scores ("attention_bias"). With the bias, encoded events
            do not depend on the request, so the requests of one user in a batch share them.
        attention: How STCA computes attention; the results are the same. "tiled" runs anywhere. "flex" is one fused
            kernel, PyTorch's FlexAttention, on CUDA devices and "tiled" elsewhere.
        events_per_token: Adjacent events that LONGER merges into one token (K). Other models do not use it.
        query_tokens: Newest tokens that are queries in LONGER (k). Other models do not use it.
        id_table_rows: Rows of each embedding table of ids.
        feature_types: Feature types by column name, where the default (see `config`) is not wanted.
    """

    renamed_keys = {
        "elapsed": "time_encoding",
        "merge": "events_per_token",
        "newest": "query_tokens",
        "id_rows": "id_table_rows",
        "kinds": "feature_types",
    }

    name: ModelName = "stca"
    width: int = Field(default=32, ge=4)
    heads: int = Field(default=4, ge=1)
    layers: int = Field(default=2, ge=1)
    expansion: int = Field(default=2, ge=1)
    head: Literal["rankmixer", "mlp"] = "rankmixer"
    time_encoding: Literal["event_feature", "attention_bias"] = "event_feature"
    attention: Literal["tiled", "flex"] = "tiled"
    events_per_token: int = Field(default=4, ge=1)
    query_tokens: int = Field(default=100, ge=1)
    id_table_rows: int = Field(default=131_072, ge=1)
    feature_types: dict[str, FeatureType] = {}

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        for parts, meaning in ((self.heads, "`heads`"), (HEAD_TOKENS, "the number of tokens of the head")):
            if self.width % parts:
                raise ValueError(f"width {self.width} is not a multiple of {parts}, {meaning}; change one of them")
        if self.time_encoding == "attention_bias" and self.name != "stca":
            raise ValueError(
                f'time_encoding = "attention_bias" requires the model stca, found {self.name}; remove the key'
            )
        if self.attention == "flex" and self.name != "stca":
            raise ValueError(f'attention = "flex" requires the model stca, found {self.name}; remove the key')
        return self

    @property
    def shares_timelines(self) -> bool:
        """Whether encoded events do not depend on the request, so that batches may have shared timelines."""
        return self.time_encoding == "attention_bias"


class ModelColumns(StrictModel):
    """The columns a model reads, besides item_id, user_id and the time since each event.

    Attributes:
        history: Features of events.
        targets: Features of targets.
        requests: Features of requests.
        labels: Names of the labels, in the order of the logits.
    """

    history: tuple[Column, ...]
    targets: tuple[Column, ...]
    requests: tuple[Column, ...]
    labels: tuple[str, ...] = Field(min_length=1)


class SampledLength(StrictModel):
    """History lengths sampled for each request; see `loaders.StochasticLength`.

    Attributes:
        minimum: Shortest length, in events.
        maximum: Longest length, in events.
        alpha: First parameter of the Beta distribution.
        beta: Second parameter of the Beta distribution.
    """

    minimum: int = Field(ge=0)
    maximum: int = Field(ge=0)
    alpha: float = 0.5
    beta: float = 0.5


def _length_tag(value: object) -> str:
    return "range" if isinstance(value, Mapping | SampledLength) else "number"


class TrainConfig(StrictModel):
    """One training run. It ends at the first of `epochs`, `max_steps` and `max_seconds`.

    Attributes:
        model: The model.
        labels: Labels to predict, the main one first; empty for all labels of the dataset.
        history_length: Newest events of each history: a number, or lengths sampled from a range.
        batch_size: Requests per batch.
        shuffle_run: Requests that remain neighbors when the order is shuffled, mostly of one user. Above 1, a model
            with `time_encoding = "attention_bias"` encodes a timeline once for several requests.
        learning_rate: Of dense weights.
        embedding_learning_rate: Of embedding tables.
        weight_decay: Of the weight matrices of layers.
        gradient_accumulation_steps: Batches per optimizer step and rank, whose gradients are summed.
        warmup_steps: Steps over which the learning rates rise from 0.
        lr_schedule: "cosine" lets the learning rates fall to 0 at the last step, which `epochs` and `max_steps`
            determine.
        max_grad_norm: Maximum norm of the gradients of dense weights, small tables included. Large tables are not
            clipped.
        bf16: Compute matrix products in bfloat16 (autocast). Weights, their updates and the loss stay float32.
        compile: Compile the modules that map rows one by one; see `compile`.
        tensorboard: Write `RUN/tensorboard`; see `tensorboard`.
        epochs: Passes over the training requests.
        max_steps: Maximum number of optimizer steps.
        max_seconds: Maximum duration.
        checkpoint_steps: Save every so many steps, besides at the end.
        keep_checkpoints: Number of newest checkpoints to keep.
        train_before: Requests before it are trained on and the others evaluated: a time, or the share of requests, in
            order of time, to train on; None trains on everything.
        evaluate_before: End of the requests to evaluate.
        evaluate_requests: Approximate number of requests to evaluate, drawn at random; None for all.
        seed: Of initial weights, the order of requests and sampled lengths.
        num_workers: Processes that load batches.
    """

    renamed_keys = {
        "accumulate": "gradient_accumulation_steps",
        "decay": "lr_schedule",
        "clip_norm": "max_grad_norm",
    }

    model: ModelConfig = ModelConfig()
    labels: tuple[str, ...] = ()
    history_length: Annotated[
        Annotated[int, Tag("number")] | Annotated[SampledLength, Tag("range")], Discriminator(_length_tag)
    ] = 500
    batch_size: int = Field(default=64, ge=1)
    shuffle_run: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    embedding_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float | None = Field(default=None, gt=0)
    bf16: bool = False
    compile: bool = False
    tensorboard: bool = False
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=1, ge=1)
    train_before: AwareDatetime | float | None = 0.8
    evaluate_before: AwareDatetime | None = None
    evaluate_requests: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=0, ge=0)

    @field_validator("train_before", mode="before")
    @classmethod
    def _check_share(cls, value: object) -> object:
        # without this check a number above 1 would be read as a time in 1970
        if isinstance(value, int | float) and not 0 < value < 1:
            raise ValueError("a share of the requests must be between 0 and 1; give a share such as 0.8, or a time")
        return value

    @property
    def max_history_length(self) -> int:
        """The longest history a request can have in training, in events."""
        length = self.history_length
        return length.maximum if isinstance(length, SampledLength) else length


def load_config(path: FileLocation | None = None, **overrides: object) -> TrainConfig:
    """Read a training config from a TOML file.

    Args:
        path: Path or URL of the file; None for the defaults.
        **overrides: Values that replace those of the file, by key; None leaves the file's value.

    Returns:
        The config.

    Raises:
        SpecError: The file cannot be read or is invalid; see `validate_config`.
    """
    try:
        values = tomllib.loads(read_file(path).decode()) if path else {}
    except OSError as error:
        raise SpecError(f"cannot read the training config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not TOML: {error}") from None
    given = {name: value for name, value in overrides.items() if value is not None}
    return validate_config({**values, **given}, str(path) if path else "the training config")


def validate_config(values: Mapping[str, object], origin: str = "the training config") -> TrainConfig:
    """Make a training config from plain values, with readable errors instead of pydantic's.

    Args:
        values: Values by key.
        origin: What to call the values in errors, such as a file name.

    Returns:
        The config.

    Raises:
        SpecError: A key or value is invalid: one line per problem, with the key, the value and the nearest known key.

    Example:
        >>> validate_config({"batch_size": 32}).batch_size
        32
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(detail)}" for detail in error.errors())
        raise SpecError(f"{origin} is not a valid training config:\n{problems}") from None


def _explain(detail: Mapping[str, Any]) -> str:
    """One line about an error: its key, without pydantic's names of union members, the value, and what to do."""
    location = tuple(part for part in detail["loc"] if part not in UNION_TAGS) or ("top level",)
    if detail["type"] == "missing":
        return f"{'.'.join(map(str, location))}: required key is missing; add it"
    return explain({**detail, "loc": location}, TrainConfig)


def default_feature_type(name: str, stored_type: str) -> FeatureType:
    """Find the feature type of a column by the table in the docstring of `config`.

    Args:
        name: The column's name.
        stored_type: Its Arrow type, such as "int32".

    Returns:
        The feature type.

    Raises:
        SpecError: No embedding reads this type.
    """
    if stored_type in CATEGORY_ROWS:
        return "category"
    if stored_type in ("float", "double", "halffloat"):
        return "numeric"
    if stored_type in ("int32", "int64"):
        return "numeric" if name.endswith(UNIT_SUFFIXES) else "id"
    raise SpecError(
        f"column {name!r} is stored as {stored_type}, which models cannot embed; remove it from the build spec"
    )


def model_columns(types: ColumnTypes, labels: tuple[str, ...], config: ModelConfig) -> ModelColumns:
    """Choose the columns of a model from a dataset.

    Args:
        types: Stored types by role (history, targets, requests, labels) and column name.
        labels: Labels to predict; empty for all of the dataset.
        config: Size of id tables and overrides of feature types.

    Returns:
        The columns.

    Raises:
        SpecError: The dataset has no labels, or does not have a label or column that the config names.
    """
    known = set(types["labels"])
    if not known:
        raise SpecError(
            "the dataset has no labels to predict; add [requests.labels] to its build spec and build it again"
        )
    if unknown := [name for name in labels if name not in known]:
        raise SpecError(f"labels: {unknown} are not in the dataset; its labels are {sorted(known)}")
    features = {name for role in ("history", "targets", "requests") for name in types[role]}
    if unknown := sorted(set(config.feature_types) - features):
        raise SpecError(f"model.feature_types: {unknown} are not in the dataset; its features are {sorted(features)}")
    return ModelColumns(
        history=_columns(types["history"], config),
        targets=_columns(types["targets"], config),
        requests=_columns(types["requests"], config),
        labels=labels or tuple(types["labels"]),
    )


def _columns(types: Mapping[str, str], config: ModelConfig) -> tuple[Column, ...]:
    columns = []
    for name, stored_type in types.items():
        feature_type = config.feature_types.get(name) or default_feature_type(name, stored_type)
        columns.append(Column(name=name, feature_type=feature_type, rows=_rows(feature_type, stored_type, config)))
    return tuple(columns)


def _rows(feature_type: FeatureType, stored_type: str, config: ModelConfig) -> int:
    if feature_type == "numeric":
        return NUMERIC_ROWS
    return CATEGORY_ROWS.get(stored_type, config.id_table_rows) if feature_type == "category" else config.id_table_rows
