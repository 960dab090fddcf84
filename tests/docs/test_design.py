"""The design page shows the folders and the stages of a build as they are."""

import re

from paths import ROOT

PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_the_listing_names_every_module() -> None:
    (listing,) = re.findall(r"### Where things are\n\n```\n(.*?)```", PAGE, re.DOTALL)
    listed: dict[str, set[str]] = {}
    for line in listing.splitlines():
        if not line.startswith(" "):
            folder, _, line = line.partition("/ ")
            listed[folder] = set()
        listed[folder] |= set(line.split())
    listed.pop("src/longbatch")
    for folder, names in listed.items():
        paths = [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*.c")]
        assert names == {p.stem if p.suffix == ".py" else p.name for p in paths if not p.stem.startswith("__")}, folder


def test_the_path_of_a_row_is_the_code_of_the_build() -> None:
    (code,) = re.findall(r"### The path of a row\n.*?```python\n(.*?)```", PAGE, re.DOTALL)
    build = (ROOT / "jobs" / "build.py").read_text(encoding="utf-8")
    assert code in re.sub(r"^    ", "", build, flags=re.MULTILINE)
