"""The columns that a spec maps: ids, times, features and labels, with their types and allowed values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

FeatureType = Literal["int8", "int16", "int32", "int64", "float32", "float64", "bool", "string", "id"]
LabelType = Literal["int8", "int16", "int32", "int64", "float32", "float64", "bool"]
TimeUnit = Literal["s", "ms", "us", "iso"]
Aggregate = Literal["any", "count", "sum", "max"]

DURATION_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
LONGEST_US = 36_525 * DURATION_US["d"]
LABEL_TYPE_OF: dict[str, LabelType] = {"any": "int8", "count": "int32", "sum": "int64", "max": "int64"}


def duration_us(text: str) -> int:
    """Convert a duration to microseconds.

    Args:
        text: An integer and one of the units us, ms, s, m, h, d, such as "5s" or "250ms".

    Returns:
        Microseconds.

    Raises:
        ValueError: The text is not a duration.

    Example:
        >>> duration_us("2h")
        7200000000
    """
    match = re.fullmatch(r"\s*(\d+)\s*([a-z]+)\s*", text)
    if match is None or match[2] not in DURATION_US:
        raise ValueError(f"{text!r} is not a duration; write a whole number and a unit, such as 5s, 250ms, 2h, 1d")
    return int(match[1]) * DURATION_US[match[2]]


def _is_duration(value: str) -> str:
    if duration_us(value) > LONGEST_US:
        raise ValueError("the duration is longer than a century; check its unit")
    return value


def _column(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


def one_or_more(value: object) -> object:
    """Wrap a string in a tuple; the shorthand for a list of one.

    Args:
        value: A string, or anything else, which is returned unchanged.
    """
    return (value,) if isinstance(value, str) else value


class Strict(BaseModel):
    """Base of all models of the spec: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class IdColumn(Strict):
    """A column of ids: `int64` ids are stored unchanged, `string` ids are hashed and kept in the vocabulary."""

    column: str
    type: Literal["int64", "string"] = "int64"


class TimeColumn(Strict):
    """A column of times: timestamps need no unit, numbers need s, ms or us, and strings need iso or a `format`."""

    column: str
    unit: TimeUnit | None = None
    format: str | None = None
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("unknown time zone; use an IANA name such as Europe/Berlin")
        return value


def fits(default: bool | int | float | str, type_name: FeatureType) -> bool:
    """Return whether a default is a value of a type.

    Args:
        default: The value.
        type_name: The type; an "id" is an integer, or a string that is hashed.
    """
    if type_name in ("string", "id"):
        return isinstance(default, str) or (type_name == "id" and type(default) is int and abs(default) < 2**63)
    if type_name == "bool":
        return default in (0, 1)
    if type_name.startswith("float"):
        return isinstance(default, int | float) and not isinstance(default, bool)
    limit = 1 << (int(type_name.removeprefix("int")) - 1)
    return type(default) is int and -limit <= default < limit


class Declared(Strict):
    """Declared limits of a column: `min` and `max`, both inclusive, or a list of `values`. Others are rejected."""

    min: int | float | None = None
    max: int | float | None = None
    values: tuple[int | str, ...] | None = Field(default=None, min_length=1)

    def check_declared(self, type_name: FeatureType) -> None:
        """Check that the declared limits fit the column's type.

        Args:
            type_name: Type of the column.

        Raises:
            ValueError: They do not.
        """
        if (self.min is not None or self.max is not None) and type_name in ("bool", "string", "id"):
            raise ValueError(f"min and max apply to numbers, not to {type_name}; use `values`")
        if any(bound is not None and not math.isfinite(bound) for bound in (self.min, self.max)):
            raise ValueError("min and max must be finite numbers")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is greater than max {self.max}; change one of them")
        if self.values is None:
            return
        if type_name.startswith("float") or type_name == "bool":
            raise ValueError(f"`values` must be integers or strings, but the type is {type_name}; use min and max")
        if not all(fits(value, type_name) for value in self.values) or len({type(value) for value in self.values}) > 1:
            raise ValueError(f"values {list(self.values)} are not all of type {type_name}; change one of them")


class Feature(Declared):
    """A column that is stored as a feature, converted to `type`; a null becomes `default` if there is one."""

    column: str
    type: FeatureType
    default: int | float | bool | str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default is not None and not fits(self.default, self.type):
            raise ValueError(f"default {self.default!r} is not of type {self.type}; change one of them")
        self.check_declared(self.type)
        return self


class Label(Declared):
    """A label of a target.

    There are three ways to compute a label:

    * from a `column` of the target's row, or whether the column is `at_least` a number;
    * whether the row's item is an element of a list column, `contained_in`;
    * an `aggregate` over the later actions on the same item, `within` a time after the request and selected by
      `where`: any, count, or the sum or max of a `column` of the actions.
    """

    column: str | None = None
    type: LabelType = "int8"
    default: int | float | bool | None = None
    at_least: int | float | None = None
    contained_in: str | None = None
    aggregate: Aggregate | None = None
    within: Annotated[str, AfterValidator(_is_duration)] | None = None
    where: str | None = None

    @property
    def within_us(self) -> int:
        """The label window after the request, in microseconds; 0 without an aggregate."""
        return duration_us(self.within or "0s")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.aggregate is None:
            self._check_own_row()
        else:
            self._check_aggregate(self.aggregate)
        if self.column is None and (self.min, self.max, self.values) != (None, None, None):
            raise ValueError("min, max and values need a `column`, which this label does not have; remove them")
        if self.default is not None and not fits(self.default, self.type):
            raise ValueError(f"default {self.default!r} is not of type {self.type}; change one of them")
        self.check_declared(self.type)
        return self

    def _check_own_row(self) -> None:
        if (self.column is None) == (self.contained_in is None):
            raise ValueError("a label needs exactly one of `column`, `contained_in` and `aggregate`")
        if self.at_least is not None and (self.column is None or self.type.startswith("float")):
            raise ValueError("`at_least` needs a `column` and yields 0 or 1; set type to an integer type or bool")
        if self.at_least is not None and (self.min, self.max, self.values) != (None, None, None):
            raise ValueError("`at_least` yields 0 or 1; declare min, max and values for a feature of the same column")
        if self.within is not None or self.where is not None:
            raise ValueError("`within` and `where` apply only to a label with an `aggregate`; remove them")

    def _check_aggregate(self, aggregate: Aggregate) -> None:
        if self.contained_in is not None or self.at_least is not None:
            raise ValueError("`aggregate` cannot be combined with `contained_in` or `at_least`; remove one of them")
        if (self.column is not None) != (aggregate in ("sum", "max")):
            raise ValueError("sum and max need a `column`, any and count must not have one")
        if not self.within_us:
            raise ValueError(
                'an aggregate needs `within`, the time after the request in which actions count, such as "30m"'
            )
        if self.default is not None and aggregate != "max":
            raise ValueError("only max takes a `default`; any, count and sum of no actions are 0")
        if aggregate == "count" and not self.type.startswith("int"):
            raise ValueError(f"a count needs an integer type, not {self.type}")
        if aggregate in ("sum", "max") and self.type == "bool":
            raise ValueError("sum and max need a numeric type, not bool; use any")


def _features(value: object) -> object:
    """Expand `name = "int32"` to `name = { column = "name", type = "int32" }`."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: {"column": name, "type": entry} if isinstance(entry, str) else _with_column(name, entry)
        for name, entry in value.items()
    }


def _with_column(name: str, entry: object) -> object:
    if not isinstance(entry, Mapping) or "contained_in" in entry:
        return entry
    if "aggregate" in entry:
        return {"type": LABEL_TYPE_OF.get(str(entry["aggregate"]), "int8"), **entry}
    return {"column": name, **entry}


Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Duration = Annotated[str, AfterValidator(_is_duration)]
Id = Annotated[IdColumn, BeforeValidator(_column)]
Time = Annotated[TimeColumn, BeforeValidator(_column)]
Features = Annotated[dict[Name, Feature], BeforeValidator(_features)]
Labels = Annotated[dict[Name, Label], BeforeValidator(_features)]
