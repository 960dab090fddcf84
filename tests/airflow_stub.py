"""A small stand-in for Airflow: it has what `examples/schedulers/airflow_daily.py` imports, and runs tasks in order."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch


class AirflowException(Exception):  # noqa: N818 - the name in Airflow
    """A failure that is retried."""


class AirflowFailException(AirflowException):
    """A failure that is not retried."""


@dataclass(eq=False)
class Task:
    """A call of a task function."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    upstream: list[Task] = field(default_factory=list)

    def __rshift__(self, other: Task) -> Task:
        other.upstream.append(self)
        return other


@dataclass
class Dag:
    """The tasks of a DAG, in the order in which they were called."""

    tasks: list[Task] = field(default_factory=list)

    def run(self, end: datetime) -> dict[str, Any]:
        """Run all tasks whose upstream tasks have run; return the results by task. A sensor must return True."""
        results: dict[Task, Any] = {}
        with patch.dict(_context, {"data_interval_end": end}):
            while waiting := [task for task in self.tasks if task not in results]:
                ready = next(task for task in waiting if all(other in results for other in _needed(task)))
                arguments = [results[part] if isinstance(part, Task) else part for part in ready.arguments]
                results[ready] = ready.function(*arguments)
        return {task.name: result for task, result in results.items()}


_context: dict[str, Any] = {}
_dags: list[Dag] = []


def _needed(task: Task) -> list[Task]:
    return [*task.upstream, *(part for part in task.arguments if isinstance(part, Task))]


def _task(function: Callable[..., Any] | None = None, **_settings: object) -> Any:
    if function is None:
        return _task

    def call(*arguments: Any) -> Task:
        made = Task(function.__name__, function, arguments)
        _dags[-1].tasks.append(made)
        return made

    return call


def _dag(**_settings: object) -> Any:
    def decorate(function: Callable[[], None]) -> Callable[[], Dag]:
        def make() -> Dag:
            _dags.append(Dag())
            function()
            return _dags.pop()

        return make

    return decorate


def load_dag_file(path: Path) -> ModuleType:
    """Import a file with DAGs, with this stand-in as `airflow`."""
    _task.sensor = _task  # type: ignore[attr-defined]
    sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.sdk.exceptions")
    vars(sdk).update(dag=_dag, task=_task, get_current_context=lambda: _context)
    vars(exceptions).update(AirflowException=AirflowException, AirflowFailException=AirflowFailException)
    modules = {"airflow": ModuleType("airflow"), "airflow.sdk": sdk, "airflow.sdk.exceptions": exceptions}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, modules):
        spec.loader.exec_module(module)
    return module
