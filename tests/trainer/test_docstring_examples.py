"""The examples in the docstrings of the trainer run and give the results they show."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
from training_data import TrainedRun

from longbatch import trainer

MODULES = [module.name for module in pkgutil.walk_packages(trainer.__path__, "longbatch.trainer.")]
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(
    name: str, dataset: Path, trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset").symlink_to(dataset)
    (tmp_path / "run").symlink_to(trained.folder)
    monkeypatch.chdir(tmp_path)
    for example in FINDER.find(import_module(name)):
        messages: list[str] = []
        result = doctest.DocTestRunner().run(example, out=messages.append)
        assert not result.failed, "".join(messages)
