"""The documentation as a site: generated pages, a strict build without a network, notebooks that run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sft_lightning
from sft_lightning.cli.commands import COMMANDS
from sft_lightning.cli.registry import describe_settings
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
docs_hooks = pytest.importorskip("docs_hooks")  # needs MkDocs, which the extra `docs` installs

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_reference_lists_every_command_and_its_options() -> None:
    page = docs_hooks.commands_page()
    for name, command in COMMANDS.items():
        section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert command.does in section
        assert all(f"sft-lightning {example}\n" in section for example in command.examples)
    assert "| `--label_next` | " in page
    assert "| `--strict` |" in page


def test_reference_lists_every_setting() -> None:
    page = docs_hooks.settings_page()
    for name in describe_settings():
        prefix, _, last = name.rpartition(".")
        assert f"| `{last}` |" in page.partition(f"\n## {prefix}\n")[2].partition("\n## ")[0]


def test_reference_lists_every_public_class() -> None:
    page = docs_hooks.public_page()
    assert [name for name in sft_lightning.__all__ if f"[`{name}`][sft_lightning." not in page] == []


def test_reference_covers_every_package_but_the_command_line() -> None:
    packages = {path.parent.name for path in (ROOT / "sft_lightning").glob("*/__init__.py")}
    assert packages - {name for _, names in docs_hooks.API.values() for name in names} == {"cli"}


def test_navigation_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    written |= {f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
    assert {name for name in named if not name.startswith("reference/")} == written


def test_docstrings_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    """What stops a strict build, found without one: a parameter that does not exist, or an entry that is none."""
    griffe = pytest.importorskip("griffe")

    def read(node: Any) -> None:
        if node.docstring is not None:
            node.docstring.parse("google")
        for member in node.members.values():
            if not member.is_alias:
                read(member)

    with caplog.at_level("WARNING"):
        read(griffe.load("sft_lightning", search_paths=[str(ROOT)]))
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.slow
def test_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    # A proxy that does not exist: a build that asks the network for anything fails.
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?([^\"\s>]+)", page.read_text("utf-8"))
        assert [target for target in loaded if "://" in target] == []
    assert (tmp_path / "search" / "search_index.js").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "sft-lightning"  # the package of this checkout, whatever is installed
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sft_lightning "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    # A shell line that fails raises nothing in a notebook.
    assert "sft-lightning: " not in re.sub(r"sft-lightning \S+: importing PyTorch \.\.\.", "", shown), shown
    assert not any(output["output_type"] == "error" for cell in notebook.cells for output in cell.get("outputs", ()))
    assert list((tmp_path / "lightning_logs").rglob("version_0/fit.yaml"))
