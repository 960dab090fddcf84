"""What a training run can be told, as frozen models stored with its checkpoint. No torch in here.

How a column becomes part of a token (`column_kind`) follows from its stored type and its name alone:

| stored type | name | kind |
|---|---|---|
| bool, int8 | any | category: a table of 256 rows, no collisions |
| int16 | any | category: a table of 4,096 rows, the value modulo its size |
| int32, int64 | ends in a unit: _ms, _us, _s, _seconds, _minutes, _hours, _days, _bytes, _count | measure |
| int32, int64 | any other | id: hashed into a table of `id_rows` rows |
| float, double | any | measure: two logarithmic buckets per octave |

`ModelConfig.kinds` overrules it by name. Text columns are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from longbatch.schemas.errors import SpecError

Kind = Literal["id", "category", "measure"]
ModelName = Literal["stca", "longer", "transformer", "din", "mean"]
ColumnTypes = Mapping[str, Mapping[str, str]]

UNIT_SUFFIXES = ("_ms", "_us", "_s", "_seconds", "_minutes", "_hours", "_days", "_bytes", "_count")
CATEGORY_ROWS = {"bool": 256, "int8": 256, "int16": 4_096}
MEASURE_ROWS = 2 * 81 + 1  # 80 magnitudes (2^-10 to 2^30, two an octave) and zero, by sign; one for NaN


class Strict(BaseModel):
    """A frozen model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Strict):
    """A feature and the embedding table it reads; columns of one name, kind and size share a table."""

    name: str
    kind: Kind
    rows: int = Field(ge=1)

    @property
    def table(self) -> str:
        """The name of the table."""
        return f"{self.name}_{self.kind}_{self.rows}"


class ModelConfig(Strict):
    """Which model, and its size. The 4 tokens of the head divide the width, and so must `heads`.

    head: what makes logits of a target's tokens, see `head`.
    elapsed: where STCA has the time from event to request: in the event's token, as published, or in attention, as a bias of its
    scores. Then encoded events do not depend on the request, and requests of one user in a batch share them.
    attention: how STCA attends, to the same numbers: by tiles, or on CUDA devices by FlexAttention, one fused kernel (elsewhere by tiles too).
    merge, newest: LONGER's adjacent events per token (K) and newest tokens that ask (k); no other model
    reads them, nor do DIN and mean pooling read `heads` and `layers`.
    """

    name: ModelName = "stca"
    width: int = Field(default=32, ge=4)
    heads: int = Field(default=4, ge=1)
    layers: int = Field(default=2, ge=1)
    expansion: int = Field(default=2, ge=1)
    head: Literal["rankmixer", "mlp"] = "rankmixer"
    elapsed: Literal["event", "attention"] = "event"
    attention: Literal["tiled", "flex"] = "tiled"
    merge: int = Field(default=4, ge=1)
    newest: int = Field(default=100, ge=1)
    id_rows: int = Field(default=131_072, ge=1)
    kinds: dict[str, Kind] = {}

    @model_validator(mode="after")
    def _divides(self) -> Self:
        for name, parts in (("heads", self.heads), ("the 4 tokens of the head", 4)):
            if self.width % parts:
                raise ValueError(f"width {self.width} is no multiple of {parts}, which {name} need")
        if self.elapsed == "attention" and self.name != "stca":
            raise ValueError(f'elapsed = "attention" is for stca; {self.name} has it in the event')
        if self.attention == "flex" and self.name != "stca":
            raise ValueError(f'attention = "flex" is for stca; {self.name} has attention of its own')
        return self

    @property
    def shares_timelines(self) -> bool:
        """Whether events are encoded the same for all requests of a user, so that batches may be of the shared form."""
        return self.elapsed == "attention"


class ModelColumns(Strict):
    """The columns a model reads, besides item_id, user_id and the time since each event."""

    history: tuple[Column, ...]
    targets: tuple[Column, ...]
    requests: tuple[Column, ...]
    labels: tuple[str, ...] = Field(min_length=1)


class Length(Strict):
    """Sampled history lengths; see `loaders.StochasticLength`."""

    minimum: int = Field(ge=0)
    maximum: int = Field(ge=0)
    alpha: float = 0.5
    beta: float = 0.5


class TrainConfig(Strict):
    """One training run. It ends at the first of `epochs`, `max_steps` and `max_seconds`.

    labels: the first is the main one; empty means all labels of the dataset.
    train_before: requests before it train, the others evaluate: a time, or the share of requests, in
    order of time, that trains; None trains on everything.  `evaluate_before` ends the evaluation, which
    takes about `evaluate_requests` of the requests, drawn at random, or all.
    clip_norm: the largest norm of the gradients of dense weights, small tables included; large tables are not clipped.
    bf16: run matrix products in bfloat16 (autocast); weights, their updates and the loss stay in float32.
    shuffle_run: requests that stay neighbours when the order is shuffled, mostly of one user; several let a model with
    `elapsed = "attention"` encode their timeline once.
    compile: compile what maps rows one by one, see `compiling`.  tensorboard: write `RUN/tensorboard`, see `board`.
    batch_size: requests per batch.  accumulate: batches per step and rank, their gradients added up.
    warmup_steps: steps over which learning rates rise from nothing; decay: "cosine" lets them fall to nothing by the last step, which
    `epochs` and `max_steps` say.
    checkpoint_steps: save every so many steps, besides at the end.  keep_checkpoints: how many of the newest to keep.
    """

    model: ModelConfig = ModelConfig()
    labels: tuple[str, ...] = ()
    history_length: int | Length = 500
    batch_size: int = Field(default=64, ge=1)
    shuffle_run: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    embedding_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    accumulate: int = Field(default=1, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = Field(default=None, gt=0)
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
    def _is_share(cls, value: Any) -> Any:
        # else a number too large for a share would be read as a time of 1970
        if isinstance(value, int | float) and not 0 < value < 1:
            raise ValueError(f"a share of the requests lies between 0 and 1; {value} does not")
        return value

    @property
    def longest(self) -> int:
        """The longest history a request can have in training."""
        length = self.history_length
        return length.maximum if isinstance(length, Length) else length


def column_kind(name: str, stored_type: str) -> Kind:
    """The kind of a column by the table in this file's docstring; SpecError for a type it lacks."""
    if stored_type in CATEGORY_ROWS:
        return "category"
    if stored_type in ("float", "double", "halffloat"):
        return "measure"
    if stored_type in ("int32", "int64"):
        return "measure" if name.endswith(UNIT_SUFFIXES) else "id"
    raise SpecError(f"column {name!r} is stored as {stored_type}, which no embedding reads; leave it out")


def model_columns(types: ColumnTypes, labels: tuple[str, ...], config: ModelConfig) -> ModelColumns:
    """The columns of a model, from a dataset's types: role -> name -> stored type.

    Roles are history, targets, requests and labels. Raises SpecError for unknown labels or kinds of
    columns that are not there, and for a dataset without labels.
    """
    known = set(types["labels"])
    if not known:
        raise SpecError("the dataset has no labels, so nothing can be learnt; add [requests.labels] to its spec")
    if unknown := [name for name in labels if name not in known]:
        raise SpecError(f"labels {unknown} are not in the dataset, which has {sorted(known)}")
    features = {name for role in ("history", "targets", "requests") for name in types[role]}
    if unknown := sorted(set(config.kinds) - features):
        raise SpecError(f"kinds names {unknown}, which are not features; the dataset has {sorted(features)}")
    return ModelColumns(
        history=_columns(types["history"], config),
        targets=_columns(types["targets"], config),
        requests=_columns(types["requests"], config),
        labels=labels or tuple(types["labels"]),
    )


def _columns(types: Mapping[str, str], config: ModelConfig) -> tuple[Column, ...]:
    given = {name: config.kinds.get(name) or column_kind(name, stored) for name, stored in types.items()}
    return tuple(Column(name=name, kind=kind, rows=_rows(kind, types[name], config)) for name, kind in given.items())


def _rows(kind: Kind, stored_type: str, config: ModelConfig) -> int:
    if kind == "measure":
        return MEASURE_ROWS
    return CATEGORY_ROWS.get(stored_type, config.id_rows) if kind == "category" else config.id_rows
