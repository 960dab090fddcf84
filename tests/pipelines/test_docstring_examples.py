"""The examples in docstrings are right."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pyarrow as pa
import pytest

import longbatch.pipelines

MODULES = [
    *(info.name for info in pkgutil.walk_packages(longbatch.pipelines.__path__, "longbatch.pipelines.")),
    "longbatch.schemas.ragged",
    "longbatch.schemas.source_schema",
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str) -> None:
    messages: list[str] = []
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder().find(module, extraglobs={"np": np, "pa": pa})
    for test in tests:
        doctest.DocTestRunner().run(test, out=messages.append)
    assert not messages, "".join(messages)
