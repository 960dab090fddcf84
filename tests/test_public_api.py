"""`import longbatch as lb`: what it offers, what it imports and when, and the examples of its docstrings."""

from __future__ import annotations

import doctest
import inspect
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paths import ROOT

import longbatch as lb

FUNCTIONS = sorted(name for name in lb.__all__ if inspect.isroutine(getattr(lb, name)))
CLASSES = sorted(name for name in lb.__all__ if inspect.isclass(getattr(lb, name)))
HEAVY = ("torch", "pyspark", "polars", "great_expectations", "matplotlib")
# what an example writes: its shared copy is removed before the example runs
WRITES = {"simulate": "raw", "build": "dataset", "train": "run"}


def imported_by(code: str) -> set[str]:
    """The heavy packages that a new interpreter has imported after running some code."""
    script = f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a simulated log in `raw`, its dataset in `dataset`, and a short training run in `run`."""
    folder = tmp_path_factory.mktemp("examples")
    lb.simulate(folder / "raw", users=20, events=20_000)
    lb.build(folder / "raw" / "spec.toml", folder / "dataset")
    lb.train(folder / "dataset", folder / "run", steps=2, history_length=50)
    return folder


@pytest.fixture
def workplace(shared_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of the shared files that is the current folder."""
    shutil.copytree(shared_files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples_of(value: object) -> Iterator[str]:
    """The `Example:` sections in the docstrings of a public function, or of a public class and its public methods."""
    documented = [value]
    if inspect.isclass(value):
        documented += [member for key, member in vars(value).items() if not key.startswith("_")]
    for item in documented:
        docstring = inspect.getdoc(item) or ""
        for section in docstring.split("\nExample:\n")[1:]:
            lines = section.splitlines()
            end = next((n for n, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
            yield textwrap.dedent("\n".join(lines[:end]))


def small_batch() -> lb.RequestBatch:
    """Two requests with 3 and 0 events, and with 1 and 2 targets."""
    return lb.RequestBatch(
        history={"item_id": torch.tensor([1, 2, 3]), "event_time": torch.tensor([5, 6, 7])},
        history_offsets=torch.tensor([0, 3, 3]),
        targets={"item_id": torch.tensor([10, 11, 12])},
        target_offsets=torch.tensor([0, 1, 3]),
        labels={"click": torch.tensor([1, 0, 0])},
        requests={},
        request_id=torch.tensor([1, 2]),
        user_id=torch.tensor([1, 2]),
        request_time=torch.tensor([8, 9]),
    )


def run_example(code: str, name: str) -> None:
    """Run the lines after `>>>` and compare their output; the public names, `torch` and a small `batch` are defined."""
    names = {public: getattr(lb, public) for public in lb.__all__}
    names |= {"batch": small_batch(), "torch": torch}
    test = doctest.DocTestParser().get_doctest(code, names, name, name, 0)
    messages: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        test, out=messages.append
    )
    assert not result.failed, "".join(messages)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_that_runs(name: str, workplace: Path) -> None:
    examples = list(examples_of(getattr(lb, name)))
    assert examples
    if name in WRITES:
        shutil.rmtree(workplace / WRITES[name])
    for code in examples:
        run_example(code, name)


@pytest.mark.parametrize("name", CLASSES)
def test_examples_of_public_classes_run(name: str, workplace: Path) -> None:
    for code in examples_of(getattr(lb, name)):
        if ">>>" in code:
            run_example(code, name)


@pytest.mark.usefixtures("workplace")
def test_examples_of_an_open_dataset_run() -> None:
    examples = list(examples_of(lb.open_dataset("dataset").__class__))
    assert examples
    for code in examples:
        run_example(code, "Dataset")


def test_an_example_with_a_wrong_result_is_reported() -> None:
    with pytest.raises(AssertionError, match="Expected:"):
        run_example(">>> 1 + 1\n3\n", "wrong")


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert imported_by("import longbatch as lb") == set()


def test_loading_a_spec_and_the_functions_need_neither_torch_nor_spark_nor_polars() -> None:
    code = (
        "import longbatch as lb\nlb.load_spec('examples/one_log.toml')\nlb.build, lb.train, lb.validate, lb.SpecError"
    )
    assert imported_by(code) == set()


def test_opening_a_dataset_needs_neither_torch_nor_spark(shared_files: Path) -> None:
    code = f"import longbatch as lb\nlb.open_dataset({str(shared_files / 'dataset')!r})"
    assert imported_by(code).isdisjoint({"torch", "pyspark"})


@pytest.mark.slow
def test_a_dataset_can_be_read_without_spark(shared_files: Path) -> None:
    code = f"import longbatch as lb\nnext(iter(lb.RequestDataset({str(shared_files / 'dataset')!r})))"
    assert imported_by(code).isdisjoint({"pyspark", "polars"})


def test_the_public_names_are_listed_before_they_are_imported() -> None:
    code = (
        "import longbatch\nassert set(longbatch.__all__) <= set(dir(longbatch))\nassert 'train' not in vars(longbatch)"
    )
    assert imported_by(code) == set()


@pytest.mark.slow
def test_type_checkers_see_every_public_name(tmp_path: Path) -> None:
    uses = tmp_path / "uses.py"
    uses.write_text("import longbatch as lb\n" + "\n".join(f"reveal_type(lb.{name})" for name in lb.__all__))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(uses)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    revealed = [line.partition("Revealed type is ")[2] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(lb.__all__), done.stdout
    assert not [shown for shown in revealed if shown in ('"Any"', '"object"', '"builtins.object"')]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'longbatch' has no attribute 'biuld'"):
        lb.biuld  # type: ignore[attr-defined]  # noqa: B018
