"""The examples in the docstrings of the loaders run and return the results they show."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

from longbatch import loaders

MODULES = [module.name for module in pkgutil.walk_packages(loaders.__path__, "longbatch.loaders.")]
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(
    name: str, random_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset").symlink_to(random_dataset)
    monkeypatch.chdir(tmp_path)
    for example in FINDER.find(import_module(name)):
        messages: list[str] = []
        result = doctest.DocTestRunner().run(example, out=messages.append)
        assert not result.failed, "".join(messages)
