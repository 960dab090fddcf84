"""What `plan` needs of a savings.json, read back and checked: every figure there, finite, and not negative."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longbatch.schemas.errors import SpecError

SAVINGS_VERSION = 2
PARQUET_LAYOUTS = ("sample_level_by_user", "request_level_by_user")  # whose bytes as Parquet zstd a plan is fitted to
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """Keys that a plan does not need may be there."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Dataset(_Part):
    history_length: Amount
    users: Positive
    requests: Positive
    targets: Positive
    events: Amount
    history_events: Amount


class _Formula(_Part):
    event_bytes: Positive
    request_bytes: Positive
    target_bytes: Positive


class _Rates(_Part):
    event_at_rest: Amount
    request_at_rest: Amount
    target_at_rest: Amount
    parquet_event_at_rest: Amount
    event_fields: Annotated[int, Field(gt=0)]
    log_rows: Amount
    row_bytes: Amount
    row_shuffle_bytes: Amount
    copied_bytes_per_second: Positive


class _OnDisk(_Part):
    codec: str
    read_seconds: Amount


class _File(_Part):
    format: str
    codec: str
    bytes: Amount


class _Layout(_Part):
    name: str
    files: list[_File]


class _SavingsFile(_Part):
    version: int
    dataset: _Dataset
    formula: _Formula
    rates: _Rates
    on_disk: _OnDisk
    layouts: list[_Layout]

    @model_validator(mode="after")
    def _has_what_is_fitted_to(self) -> _SavingsFile:
        measured = {layout.name: [(file.format, file.codec) for file in layout.files] for layout in self.layouts}
        missing = [name for name in PARQUET_LAYOUTS if ("Parquet", "zstd") not in measured.get(name, [])]
        if missing:
            raise ValueError(f"{', '.join(missing)} was not measured as Parquet zstd")
        return self


def read_savings(path: str | Path) -> dict[str, Any]:
    """Read a savings.json. Raises SpecError naming the figure if it is not one of this version, or was damaged."""
    try:
        text = Path(path).read_bytes()
        version = json.loads(text)["version"]
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}; make one with `longbatch measure`") from None
    except (ValueError, KeyError, TypeError):
        raise SpecError(f"{path} is no savings.json; make one with `longbatch measure`") from None
    if version != SAVINGS_VERSION:
        raise SpecError(f"{path} is of version {version}, this longbatch reads {SAVINGS_VERSION}; measure again")
    try:
        return _SavingsFile.model_validate_json(text).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        told = f"{where}: {first['msg']}" if where else str(first["msg"]).removeprefix("Value error, ")
        raise SpecError(f"{path} was damaged: {told}; measure again") from None
