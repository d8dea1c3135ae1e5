"""`scripts/release` releases a clean tree whose files agree on version and date, and the files that it needs exist."""

import re
import shutil
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from sft_lightning import __version__
from tests.conftest import ROOT

TODAY = datetime.now(UTC).date().isoformat()
GIT = ["git", "-c", "user.name=tester", "-c", "user.email=tester@example.org"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout that can be released today."""
    for folder in ("scripts", "sft_lightning"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "scripts" / "release", tmp_path / "scripts" / "release")
    (tmp_path / "sft_lightning" / "_version.py").write_text('"""Version."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## 1.2.3 ({TODAY})\n\n- News.\n\n## 1.2.2 (2020-01-01)\n")
    (tmp_path / "CITATION.cff").write_text(f"version: 1.2.3\ndate-released: {TODAY}\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*GIT, *words], cwd=tmp_path, check=True)
    return tmp_path


def release(checkout: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([checkout / "scripts" / "release", *words], cwd="/", capture_output=True, text=True)


def test_dry_run_shows_the_steps_and_does_none(checkout: Path) -> None:
    done = release(checkout, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "+ ./scripts/test",
        "+ rm -rf dist",
        "+ .venv/bin/python -m build",
        "+ git tag --annotate v1.2.3 --message Version 1.2.3",
        "Version 1.2.3 can be released.",
    ]
    assert subprocess.run(["git", "tag"], cwd=checkout, capture_output=True, text=True, check=True).stdout == ""


def test_release_runs_the_steps(checkout: Path) -> None:
    for name, code in (("scripts/test", "echo tested"), (".venv/bin/python", 'echo "$@"')):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(f"#!/bin/sh\n{code}\n")
        (checkout / name).chmod(0o755)
    settings = [["config", "user.name", "tester"], ["config", "user.email", "tester@example.org"]]
    for words in (*settings, ["add", "--force", "."], ["commit", "-q", "-m", "Add scripts"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    done = release(checkout)
    assert done.returncode == 0, done.stderr
    assert "tested\n" in done.stdout
    assert "-m build\n" in done.stdout
    tags = subprocess.run(["git", "tag"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert tags == "v1.2.3\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("CHANGELOG.md", TODAY, "2020-01-02", f"its first heading must be '## 1.2.3 ({TODAY})'"),
        ("CHANGELOG.md", "## 1.2.3", "## 1.2.4", "CHANGELOG.md begins with '## 1.2.4"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", "CITATION.cff lacks the line 'version: 1.2.3'"),
        ("CITATION.cff", TODAY, "2020-01-02", f"CITATION.cff lacks the line 'date-released: {TODAY}'"),
        ("sft_lightning/_version.py", '"1.2.3"', '"soon"', "sft_lightning/_version.py has no version such as 1.2.3"),
    ],
)
def test_files_that_disagree_are_refused(name: str, old: str, new: str, expected: str, checkout: Path) -> None:
    path = checkout / name
    path.write_text(path.read_text().replace(old, new))
    subprocess.run([*GIT, "commit", "-q", "-a", "-m", "Change"], cwd=checkout, check=True)
    done = release(checkout, "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_uncommitted_change_is_refused(checkout: Path) -> None:
    (checkout / "new.py").touch()
    done = release(checkout, "--dry-run")
    assert done.returncode == 2
    assert "the tree has uncommitted changes: commit or remove them" in done.stderr


def test_version_that_is_tagged_is_refused(checkout: Path) -> None:
    subprocess.run([*GIT, "tag", "v1.2.3"], cwd=checkout, check=True)
    done = release(checkout, "--dry-run")
    assert done.returncode == 2
    assert "the tag v1.2.3 exists: raise the version" in done.stderr


def test_unknown_option_is_refused(checkout: Path) -> None:
    done = release(checkout, "--dry")
    assert done.returncode == 2
    assert "'--dry' is not an option: give --dry-run or nothing" in done.stderr


def test_version_has_a_dated_section_and_a_citation() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert all(
        re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading) for heading in headings if heading != "Unreleased"
    )
    version, date = headings[headings[0] == "Unreleased"].split()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == citation["version"] == __version__
    assert date == f"({citation['date-released']})"
    assert citation["license"] == PROJECT["project"]["license"]


def test_hooks_of_a_commit_are_installed_with_the_extra_dev() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] if repo["repo"] == "local" for hook in repo["hooks"]]
    modules = {hook["entry"].split()[2].partition(".")[0] for hook in hooks}
    modules = {module.removesuffix("_lib").replace("_", "-") for module in modules}
    packages = {re.split("[<>=\\[]", needed)[0] for needed in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert modules <= packages
    assert {"pre-commit", "build"} <= packages


def test_workflow_runs_the_two_commands() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    assert {"push", "pull_request"} == workflow[True].keys()  # YAML 1.1 reads `on` as true
    commands = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    assert commands == ["./scripts/quickstart", "./scripts/test"]
    assert PROJECT["project"]["requires-python"] == f">={workflow['jobs']['check']['strategy']['matrix']['python'][0]}"
