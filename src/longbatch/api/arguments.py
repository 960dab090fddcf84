"""Arguments as users write them, turned into the objects that jobs and trainer take."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec
from longbatch.schemas.storage.open_store import FileLocation, Location

if TYPE_CHECKING:
    from longbatch.jobs.engines.engine import Engine
    from longbatch.schemas.format.dataset import Dataset
    from longbatch.trainer.config import TrainConfig

EngineName: TypeAlias = Literal["local", "spark"]


def make_engine(engine: EngineName | Engine, *, workers: int | None = None, master: str | None = None) -> Engine:
    """Return the engine of a name, or the engine itself.

    Args:
        engine: "local", "spark", or an engine.
        workers: Threads of the local engine. Default: one per core.
        master: The Spark master. Default: that of the active session or of the environment.

    Raises:
        SpecError: The name is unknown.
    """
    if engine == "spark":
        from longbatch.jobs.engines.spark import SparkEngine

        return SparkEngine(master)
    if engine == "local":
        from longbatch.jobs.engines.local import LocalEngine

        return LocalEngine(workers)
    if isinstance(engine, str):
        raise SpecError(f"there is no engine {engine!r}; use 'local' or 'spark'")
    return engine


def read_train_config(
    config: FileLocation | TrainConfig | Mapping[str, object] | None, **overrides: float | None
) -> TrainConfig:
    """Return a `TrainConfig` from a TOML file, a mapping or another config, with the overrides that are not None.

    Raises:
        SpecError: The file cannot be read, or a key or value is invalid.
    """
    from longbatch.trainer.config import TrainConfig, load_config, validate_config

    if isinstance(config, TrainConfig):
        config = config.model_dump(exclude_unset=True)
    if not isinstance(config, Mapping):
        return load_config(config, **overrides)
    given = {name: value for name, value in overrides.items() if value is not None}
    return validate_config({**config, **given})


def read_spec(spec: FileLocation | BuildSpec) -> BuildSpec:
    """Return a spec, or the one in a TOML file at a path or URL."""
    return spec if isinstance(spec, BuildSpec) else load_spec(spec)


def read_dataset(dataset: Location | Dataset) -> Dataset:
    """Return an open dataset, or the one at a path or URI."""
    from longbatch.schemas.format.dataset import Dataset, open_dataset

    return dataset if isinstance(dataset, Dataset) else open_dataset(dataset)


def read_time(time: str | datetime | None) -> datetime | None:
    """Return a time with a UTC offset; a string or datetime without one is UTC.

    Raises:
        SpecError: The string is not an ISO time.
    """
    if time is None:
        return None
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            message = f"{time!r} is not an ISO time. Write one such as 2026-03-01 or 2026-03-01T06:00Z."
            raise SpecError(message) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
