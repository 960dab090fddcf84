"""Presets are listed, described, loaded and packaged; test_presets_public_datasets.py builds each of them."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from paths import ROOT

from longbatch.jobs.presets import describe_preset, load_preset, preset_names, preset_toml
from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec

NAMES = [
    "ebnerd",
    "kuairand-1k",
    "kuairand-27k",
    "kuairand-pure",
    "mind",
    "movielens",
    "recflow",
    "vk-lsvd",
    "yambda-500m",
    "yambda-50m",
    "yambda-5b",
]


def without_paths(name: str) -> dict[str, object]:
    """The spec of a preset without its name, its history length and the paths of its files."""
    spec = parse_spec(preset_toml(name)).model_dump(exclude={"name", "history_length"})
    return {**spec, "sources": [{**source, "path": ()} for source in spec["sources"].values()]}


def touch(folder: Path, spec: BuildSpec) -> None:
    """Make an empty file for every path of a spec."""
    for path in [folder / path.replace("*", "00") for source in spec.sources.values() for path in source.path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_presets_are_the_public_datasets() -> None:
    assert preset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_describes_its_dataset_and_its_download(name: str) -> None:
    about, download = describe_preset(name)
    assert parse_spec(preset_toml(name)).name == name
    assert about.endswith(".")
    assert download.startswith("RAW is ")
    assert "https://" in download


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_a_section_in_the_documentation(name: str) -> None:
    assert f"`preset:{name}`" in (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [("kuairand-27k", "kuairand-1k", "kuairand-pure"), tuple(NAMES[-3:])])
def test_presets_for_different_sizes_of_a_dataset_differ_only_in_their_paths(names: tuple[str, ...]) -> None:
    assert all(without_paths(name) == without_paths(names[0]) for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_the_paths_of_a_preset_start_at_the_raw_folder(name: str, tmp_path: Path) -> None:
    touch(tmp_path, parse_spec(preset_toml(name)))
    paths = [path for source in load_preset(name, tmp_path).sources.values() for path in source.path]
    assert paths
    assert all(Path(path).is_relative_to(tmp_path.resolve()) for path in paths)


def test_the_error_for_an_unknown_preset_names_the_closest_match() -> None:
    with pytest.raises(
        SpecError, match=r"unknown preset 'kuairand1k'. Did you mean 'kuairand-1k'\? The presets are ebnerd,"
    ):
        preset_toml("kuairand1k")


def test_the_error_for_a_missing_raw_file_names_it_and_its_download(tmp_path: Path) -> None:
    touch(tmp_path, parse_spec(preset_toml("kuairand-1k")))
    (tmp_path / "data" / "log_random_4_22_to_5_08_1k.csv").unlink()
    message = r"lacks data/log_random_4_22_to_5_08_1k.csv. RAW is the folder KuaiRand-1K of https://zenodo.org"
    with pytest.raises(SourceError, match=message):
        load_preset("kuairand-1k", tmp_path)
    with pytest.raises(SourceError, match=r"nowhere is not a folder. RAW is a folder with ratings.csv, such as ml-32m"):
        load_preset("movielens", tmp_path / "nowhere")


def test_the_wheel_contains_the_presets() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["longbatch"]
    assert "presets/*.toml" in declared
    assert Path(str(files("longbatch").joinpath("presets"))).samefile(ROOT / "src" / "longbatch" / "presets")
