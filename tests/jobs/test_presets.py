"""Presets are found, named, loaded and shipped; what each makes of its dataset is in test_public_datasets.py."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from paths import ROOT

from longbatch.jobs.presets import about_preset, load_preset, preset_names, preset_text
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


def meaning(name: str) -> dict[str, object]:
    """All that a preset says, but for its name and where its files are."""
    spec = parse_spec(preset_text(name)).model_dump(exclude={"name", "history_length"})
    return {**spec, "sources": [{**source, "path": ()} for source in spec["sources"].values()]}


def touch(folder: Path, spec: BuildSpec) -> None:
    """Make an empty file for every path of a spec."""
    for path in [folder / path.replace("*", "00") for source in spec.sources.values() for path in source.path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_presets_are_the_public_datasets() -> None:
    assert preset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_it_is_and_where_its_files_come_from(name: str) -> None:
    what, raw = about_preset(name)
    assert parse_spec(preset_text(name)).name == name
    assert what.endswith(".")
    assert raw.startswith("RAW is ")
    assert "https://" in raw


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_presets_has_a_part_about_each(name: str) -> None:
    assert f"`preset:{name}`" in (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [("kuairand-27k", "kuairand-1k", "kuairand-pure"), tuple(NAMES[-3:])])
def test_sizes_of_one_dataset_mean_the_same(names: tuple[str, ...]) -> None:
    assert all(meaning(name) == meaning(names[0]) for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_takes_its_files_from_the_raw_folder(name: str, tmp_path: Path) -> None:
    touch(tmp_path, parse_spec(preset_text(name)))
    paths = [path for source in load_preset(name, tmp_path).sources.values() for path in source.path]
    assert paths
    assert all(Path(path).is_relative_to(tmp_path.resolve()) for path in paths)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"no preset 'kuairand1k'; did you mean kuairand-1k\? known are ebnerd,"):
        preset_text("kuairand1k")


def test_a_raw_folder_without_a_file_is_told_which_and_where_to_get_it(tmp_path: Path) -> None:
    touch(tmp_path, parse_spec(preset_text("kuairand-1k")))
    (tmp_path / "data" / "log_random_4_22_to_5_08_1k.csv").unlink()
    lacks = r"has no data/log_random_4_22_to_5_08_1k.csv; RAW is the folder KuaiRand-1K of https://zenodo.org"
    with pytest.raises(SourceError, match=lacks):
        load_preset("kuairand-1k", tmp_path)
    with pytest.raises(SourceError, match=r"nowhere is no folder; RAW is a folder with ratings.csv, such as ml-32m"):
        load_preset("movielens", tmp_path / "nowhere")


def test_presets_are_data_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["longbatch"]
    assert "presets/*.toml" in declared
    assert Path(str(files("longbatch").joinpath("presets"))).samefile(ROOT / "src" / "longbatch" / "presets")
