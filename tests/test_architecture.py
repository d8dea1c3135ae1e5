"""Which package may import which: floors from the ground up, as CONTRIBUTING.md draws them."""

import ast
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest

import sft_lightning
from sft_lightning import modalities
from sft_lightning.data.open_data import find_modality, get_data_class
from sft_lightning.modalities import list_modalities, load
from sft_lightning.utils.inputs import InputSpec

HOME = Path(sft_lightning.__file__).parent
# Each imports what stands in an earlier line only; the names of one line do not import each other, but for a later one
# in it an earlier one.
FLOORS = [
    ["_version", "_moved", "modalities", "utils"],
    ["networks", "data", "runs"],
    ["classifiers", "anomaly", "detection", "losses", "training"],
    ["tasks", "paradigms"],
    ["__init__"],
    ["cli"],
    ["export", "transfer", "audit", "tuning", "report", "selection", "study", "solver", "__main__"],
]
RANKS = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}


def imports() -> list[tuple[str, str, str]]:
    """(file, package of the importing module, package that is imported), for every import, those in functions, too."""
    found = []
    for path in sorted(HOME.rglob("*.py")):
        where = path.relative_to(HOME)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [
                (where.as_posix(), where.parts[0].removesuffix(".py"), name.split(".")[1])
                for name in names
                if name.startswith("sft_lightning.")
            ]
    return found


def test_every_package_has_a_floor() -> None:
    there = {path.name.removesuffix(".py") for path in HOME.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {"__pycache__", "py.typed"} == set(RANKS)
    assert len(FLOORS) <= 8
    assert sum(path.suffix == ".py" for path in HOME.iterdir()) < 5


def test_imports_lead_downward() -> None:
    lazy = {"__init__"}  # hands out the public names when they are asked for
    upward = [
        f"{file} imports {package}"
        for file, own, package in imports()
        if own not in lazy and own != package and RANKS[package] > RANKS[own]
    ]
    assert not upward


def test_modules_for_every_modality_import_nothing_of_one() -> None:
    neutral = ("data", "networks", "losses", "paradigms", "tasks", "training", "runs", "utils")
    paths = [
        path
        for folder in neutral
        for path in (HOME / folder).rglob("*.py")
        if path.parent.name not in ("vision", "text", "audio")
    ]
    importing = {
        path.relative_to(HOME).as_posix()
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sft_lightning.")
        if {"vision", "text", "audio"} & {*(node.module or "").split(".")}
    }
    assert not importing


def test_only_the_modalities_themselves_hold_tables_by_modality() -> None:
    names = {one.name for one in list_modalities()}
    tables = {
        f"{path.relative_to(HOME)}:{node.lineno}"
        for path in HOME.rglob("*.py")
        if path.parent.name != "modalities"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Dict)
        if len({key.value for key in node.keys if isinstance(key, ast.Constant)} & names) > 1
    }
    assert not tables


def test_what_a_modality_names_is_there() -> None:
    assert [one.name for one in list_modalities()] == ["audio", "text", "image"]  # the default is the last
    for one in list_modalities():
        for path in (getattr(one, field.name) for field in fields(one)):
            if isinstance(path, str) and path.startswith("sft_lightning."):
                assert load(path) is not None
        assert load(one.networks).build_from_spec
        assert one.solve.skipping in ("", load(one.data_module).bad_setting)


def test_a_file_adds_a_modality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "touch.py").write_text(
        "from sft_lightning.modalities import Modality\n"
        "MODALITY = Modality('touch', noun='print', detector='builtins:len', data_module='builtins:dict')\n"
    )
    monkeypatch.setattr(modalities, "__path__", [*modalities.__path__, str(tmp_path)])
    list_modalities.cache_clear()
    try:
        assert find_modality("sample-texts") == "text"
        assert find_modality("any source") == "touch"
        assert get_data_class("touch").__name__ == "dict"
        assert InputSpec("touch", (3,)).count(2) == "2 prints"
    finally:
        list_modalities.cache_clear()
        sys.modules.pop("sft_lightning.modalities.touch", None)
    monkeypatch.undo()
    assert InputSpec("touch", (3,)).count(2) == "2 examples"


def test_no_module_is_above_400_lines() -> None:
    long = [str(path) for path in HOME.rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert not long


def test_modules_of_a_package_import_each_other_in_one_direction() -> None:
    needs: dict[str, set[str]] = defaultdict(set)
    modules = {
        ".".join(("sft_lightning", *path.relative_to(HOME).with_suffix("").parts)) for path in HOME.rglob("*.py")
    }
    for path in HOME.rglob("*.py"):
        own = ".".join(("sft_lightning", *path.relative_to(HOME).with_suffix("").parts))
        for node in ast.parse(path.read_text()).body:  # an import inside a function may break a circle
            if isinstance(node, ast.ImportFrom) and node.module:
                needs[own] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & modules
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in done:
            for other in sorted(needs[module]):
                visit(other, (*above, module))
            done.add(module)

    for module in sorted(modules):
        visit(module, ())


@pytest.mark.parametrize("module", ["cli.early_checks", "cli.argv", "cli.commands", "utils.errors", "runs.checkpoints"])
def test_what_answers_at_once_does_not_wait_for_torch(module: str) -> None:
    names = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse((HOME / (module.replace(".", "/") + ".py")).read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not {name for name in names if name and name.split(".")[0] in ("torch", "lightning", "jsonargparse")}
