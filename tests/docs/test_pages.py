"""README and docs/: commands parse, code compiles, configs load, files exist, and figures match stored results."""

import ast
import importlib
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sft_lightning.__main__ import main
from sft_lightning.cli.argv import normalize_argv
from sft_lightning.cli.commands import COMMANDS, RUN
from sft_lightning.cli.parser import Parser
from sft_lightning.cli.registry import OURS, list_parameters
from sft_lightning.utils.yaml_files import read_yaml
from tests.conftest import CONFIGS, ROOT

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
import plot_label_budget
import plot_study

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "csv", "python", "text", "yaml"}
EXTENDING = ROOT / "docs" / "extending.md"
SHOWN_RUNS = ("reviews", "barks", "cats", "mine", "solve/my_images/model")
TINY = "--trainer.max_epochs 1 --trainer.limit_val_batches 1 --data.init_args.steps_per_epoch 2"
OTHER_PROGRAMS = ("pip", "source", "taskset")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        page: File name of the page.
        language: What stands behind the fence.
        text: The lines between the fences.
    """

    page: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page.name, language, text) for language, text in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block: Block) -> Iterator[str]:
    """Yield the command lines of a shell block without comments, continued lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield shlex.join(words)


SHELL = [(block.page, line) for block in BLOCKS if block.language == "bash" for line in commands_of(block)]
OURS_SHOWN = sorted({line.split(" ", 1)[1] for _, line in SHELL if line.startswith("sft-lightning ")})
OTHERS = sorted({line for _, line in SHELL if not line.startswith("sft-lightning ")})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, write_folder: Callable[..., Path]) -> Path:
    """A folder with everything that the commands name: configs, data, weights, and a run under all names shown."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(CONFIGS, folder / "configs")
    write_folder(folder / "my_images", {"train": 8})
    write_folder(folder / "new_images", {"train": 2})
    (folder / "scans.csv").write_text("path,label\nmy_images/a.png,cat\nmy_images/b.png,dog\n")
    spectra = [f"{'' if i > 60 else 'ab'[i % 2]},{i % 2},{i % 7},{i / 120}" for i in range(120)]
    (folder / "new.csv").write_text("text\nGreat\n")
    (folder / "spectra.csv").write_text("\n".join(spectra))
    for file in examples():
        (folder / file).write_text(examples()[file])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(shlex.split(f"fit --config configs/quickstart/fine_tune.yaml {TINY}")) == 0
        assert main(shlex.split(f"fit --config configs/quickstart/autoencoder.yaml {TINY}")) == 0
    for name in SHOWN_RUNS:
        shutil.copytree(folder / RUN, folder / "lightning_logs" / name / "version_0")
    solution = folder / "lightning_logs" / "solve" / "my_images"
    (solution / "plan.json").write_text("{}")
    (solution / "summary.json").write_text('{"run": "lightning_logs/solve/my_images/model/version_0"}')
    shutil.copy(folder / RUN / "fit.yaml", folder / "fit.yaml")
    (folder / "efficientnet_lite0.safetensors").touch()
    return folder


def examples() -> dict[str, str]:
    """Return the files of docs/extending.md by their names."""
    blocks = [block.text for block in blocks_of(EXTENDING) if block.language == "python"]
    return {text.split("\n", 1)[0].removeprefix("# "): text for text in blocks}


def test_every_block_names_its_language() -> None:
    assert {block.language for block in BLOCKS} == LANGUAGES


@pytest.mark.parametrize("line", OURS_SHOWN)
def test_commands_parse(line: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    name, *rest = shlex.split(line)
    if name == "--help":
        assert main([name]) == 0
    elif COMMANDS[name].takes_fit:
        with pytest.raises(SystemExit) as stop:
            main([name, *rest, "--print_config"])
        assert stop.value.code == 0
    else:
        module, _, function = COMMANDS[name].function.partition(":")
        parser = Parser(prog=name)
        parser.add_argument("--config", action="config")
        parser.add_function_arguments(getattr(importlib.import_module(module), function), fail_untyped=True)
        parser.parse_args(normalize_argv([name, *rest])[1:])


@pytest.mark.parametrize("line", OTHERS)
def test_other_commands_name_scripts_and_options_that_exist(line: str) -> None:
    words = shlex.split(line)
    scripts = [word for word in words if "scripts/" in word]
    assert scripts or words[0] in OTHER_PROGRAMS or "sft_lightning" in words
    for script in scripts:
        path = ROOT / script
        assert path.is_file()
        if "scripts/bench" in script:
            source = path.read_text(encoding="utf-8")
            options = [word.partition("=")[0] for word in words[words.index(script) :] if word.startswith("--")]
            assert [option for option in options if f'"{option}"' not in source] == []
    if "sft_lightning" in words:
        assert words[words.index("sft_lightning") + 1] in COMMANDS


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"])
def test_python_compiles_and_its_imports_resolve(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def class_paths(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping with a class path in a config."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value
        for inner in value.values():
            yield from class_paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from class_paths(inner)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"])
def test_yaml_loads_and_its_settings_exist(block: Block, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(block.text)
    config = read_yaml(tmp_path / "config.yaml")
    homes = {name: home for home in ("sft_lightning", "sft_lightning.losses.features") for name in names_of(home)}
    for entry in class_paths(config):
        name = entry["class_path"]
        known = list_parameters(name if "." in name else f"{homes[name]}.{name}")
        assert known
        assert set(entry.get("init_args", {})) <= set(known)
    if "methods" in config:
        assert set(config) <= set(list_parameters("sft_lightning.study.study.study"))


def names_of(module: str) -> list[str]:
    names: list[str] = importlib.import_module(module).__all__
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"[`(\"]((?:\.\./)?(?:tests|scripts|configs|sft_lightning|docs)/[\w./*-]+)", text)
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/.")))] == []
    if page.name in ("benchmarks.md", "studies.md"):
        results = {path.name for path in (ROOT / "scripts/bench/results").iterdir()}
        raw = set(re.findall(r"`(\w+\.json)`", text)) - {"summary.json"}
        assert raw <= results


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_gives_can_be_imported(page: Path) -> None:
    for name in re.findall(r"`(sft_lightning(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_links_of_the_readme_resolve() -> None:
    targets = re.findall(r"(?:\]\(|src=\"|srcset=\")([^)\"]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(r"sft-lightning\[(\w+)\]", text)} - {"NAME"}
    assert named
    assert named <= set(extras)


def test_all_strategies_are_listed() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    listed = [*OURS["strategy"], *OURS["regularizer"], *OURS["feature_loss"], *OURS["adapter"]]
    assert [name for name in listed if f"`{name}`" not in text and f"`adapter: {name}`" not in text] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("theme", plot_label_budget.THEMES)
def test_figure_shows_the_stored_result(theme: str) -> None:
    result = json.loads((ROOT / "scripts/bench/results/label_budget.json").read_text(encoding="utf-8"))
    drawn = plot_label_budget.draw(result, plot_label_budget.THEMES[theme])
    assert drawn == (ROOT / f"docs/images/label_budget-{theme}.svg").read_text(encoding="utf-8")


def test_table_of_strategies_shows_the_stored_result() -> None:
    result = json.loads((ROOT / "scripts/bench/results/label_budget.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = text.partition("| test accuracy with | 40 labels |")[2].partition("\n\n")[0]
    rows = {cells[1]: cells[2:5] for cells in ([c.strip() for c in row.split("|")] for row in table.splitlines()[2:])}
    methods = {title: method for method, title in plot_label_budget.TITLES.items()}
    assert set(rows) == set(methods)
    for name, shown in rows.items():
        method = methods[name]
        for budget, cell in zip((40, 100, 1000), shown, strict=True):
            stored = result["mean_deviation_seeds"][f"{budget} {method}"][:2]
            assert [float(number) for number in cell.split(" ± ")] == pytest.approx(stored, abs=0.00051)


@pytest.mark.parametrize(
    ("result", "page"),
    [("fashion_mnist_study", "docs/studies.md"), ("quickstart", "docs/studies.md")],
)
def test_quoted_verdicts_are_those_of_the_stored_study(tmp_path: Path, result: str, page: str) -> None:
    stored = ROOT / f"scripts/bench/results/{result}.json"
    plot_study.rewrite_study(stored, tmp_path)
    verdict = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict == json.loads(stored.read_text(encoding="utf-8"))["verdict"]
    assert "\n".join(verdict) in (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_quotes_the_stored_solution() -> None:
    stored = json.loads((ROOT / "scripts/bench/results/solve_quickstart.json").read_text(encoding="utf-8"))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert " ".join(stored["summary"]["verdict"][:3]) in readme


EXTENSIONS = [line for block in blocks_of(EXTENDING) if block.language == "bash" for line in commands_of(block)]


def test_every_example_of_an_extension_is_run() -> None:
    assert [file for file in examples() if not any(Path(file).stem in line for line in EXTENSIONS)] == []


@pytest.mark.parametrize("line", EXTENSIONS)
def test_extensions_train(line: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    assert main([*shlex.split(line)[1:], *shlex.split(TINY), "--run_name", "extension"]) == 0
