"""`scripts/quickstart` and `scripts/test` stop with one sentence where they cannot start."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OLD = '#!/bin/sh\nif [ "$1" = --version ]; then echo "Python 3.9.2"; else exit 1; fi\n'
NO_VENV = f'#!/bin/sh\ncase "$2" in *venv*) exit 1;; esac\nexec {sys.executable} "$@"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "clone" / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "scripts/quickstart", "scripts/test", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    for name, text in (("old", OLD), ("bare", NO_VENV)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", ["quickstart", "test"])
@pytest.mark.parametrize(
    ("python", "expected"),
    [("old", "older than Python 3.11"), ("bare", "lacks the module venv"), ("nowhere", "is not installed")],
)
def test_one_sentence_and_no_venv(script: str, python: str, expected: str, checkout: Path) -> None:
    done = subprocess.run(
        [checkout / "clone" / "scripts" / script],
        cwd="/",
        env={**os.environ, "PYTHON": str(checkout / python)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr
    assert not (checkout / "clone" / ".venv").exists()


CHECKS = ["ruff", "codespell_lib", "mypy", "pytest"]
STUB = """#!/bin/sh
echo "$2" >>ran
if [ "$2" = "$FAILS" ]; then echo "found by $2"; exit 3; fi
"""


@pytest.mark.parametrize("fails", [*CHECKS, ""])
def test_each_check_alone_fails_the_script(fails: str, checkout: Path) -> None:
    clone = checkout / "clone"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").write_text(STUB)
    (clone / ".venv" / "bin" / "python").chmod(0o755)
    with (clone / "pyproject.toml").open() as file:
        size = subprocess.run("cksum", stdin=file, capture_output=True, text=True, check=True).stdout
    (clone / ".venv" / "ready").write_text(f"[dev] {size}")
    environment = {**os.environ, "FAILS": fails}
    done = subprocess.run([clone / "scripts" / "test"], env=environment, capture_output=True, text=True)
    assert done.returncode == (3 if fails else 0), done.stderr
    assert done.stdout == (f"found by {fails}\n" if fails else "")
    ran = set((clone / "ran").read_text().split())
    assert ran == set(CHECKS[: CHECKS.index(fails) + 1] if fails in CHECKS[:2] else CHECKS)


@pytest.mark.slow
def test_what_cannot_be_installed_names_the_remedy_and_is_not_called_ready(checkout: Path) -> None:
    done = subprocess.run(
        [checkout / "clone" / "scripts" / "test"],
        env={**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    *reason, remedy = done.stderr.splitlines()
    assert any("ERROR: " in line for line in reason)
    assert remedy.startswith("Not installed, for pip's reason above: fix it and run this again.")
    assert re.search(r"free on this disk: [\d.]+[KMGTP]?\.\)$", remedy)
    assert not (checkout / "clone" / ".venv" / "ready").exists()
