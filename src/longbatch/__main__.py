"""Runs the command line: `python -m longbatch build ...`, or `spark-submit src/longbatch/__main__.py build ...`.

`spark-submit` runs this file as a script, so Python searches this folder for modules instead of its parent. The parent
takes its place: the package is then found in a checkout that is not installed, and its modules keep their full names.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

if __name__ == "__main__":
    if not __package__ and (FOLDER / "__init__.py").exists():
        sys.path[0] = str(FOLDER.parent)
    from longbatch.cli.main import run_process

    run_process()
