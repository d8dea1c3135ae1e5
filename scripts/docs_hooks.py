"""Generates the pages that follow from code: commands, settings, classes and notebooks. MkDocs calls `on_files`."""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sft_lightning.cli.commands import COMMANDS, format_usage

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sft_lightning"
# Pages of the reference, each with the packages whose modules it lists.
API = {
    "paradigms": ("Paradigms and tasks", ("paradigms", "tasks")),
    "losses": ("Losses and strategies", ("losses",)),
    "classifiers": ("Classifiers without steps", ("classifiers", "anomaly")),
    "networks": ("Networks and detectors", ("networks", "detection")),
    "data": ("Data", ("data", "modalities")),
    "training": ("Training", ("training", "runs")),
    "tools": ("Tools", ("audit", "tuning", "transfer", "selection", "export", "report", "solver", "study", "utils")),
}
OPTION = re.compile(r"^  (?:-\w [A-Z_]+, )?(--[\w.-]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages.

    Args:
        files: Files of `docs/`.
        config: Configuration of MkDocs.

    Returns:
        The files and the generated pages.
    """
    notebooks = {file: Path(file.abs_src_path or "") for file in files if file.src_uri.endswith(".ipynb")}
    pages = {f"notebooks/{path.stem}.md": notebook_page(path) for path in notebooks.values()}
    for file in notebooks:
        files.remove(file)
    pages |= {"reference/commands.md": commands_page(), "reference/settings.md": settings_page()}
    pages |= {"reference/api/public.md": public_page()}
    pages |= {f"reference/api/{name}.md": api_page(title, packages) for name, (title, packages) in API.items()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def notebook_page(path: Path) -> str:
    """Return a notebook as a Markdown page.

    Args:
        path: Path of the notebook.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = []
    for cell in cells:
        source = "".join(cell["source"])
        texts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join([*texts, f"This page is the notebook `docs/notebooks/{path.name}`.", ""])


def commands_page() -> str:
    """Return the reference of all commands, by their groups."""
    of_fit = _options(_help_of("fit"))
    lines = ["# Commands", "", "`sft-lightning COMMAND --help` prints these options with examples.", ""]
    for group, names in groupby(COMMANDS, lambda name: COMMANDS[name].group):
        lines += [f"## {group.capitalize()}", ""]
        for name in names:
            command = COMMANDS[name]
            lines += [f"### {name}", "", command.does, "", "```text", format_usage(name), "```", ""]
            if command.takes_fit and name != "fit":
                lines += ["Takes the settings of [`fit`](settings.md), too.", ""]
            lines += [f"`{what}` is short for `--{option}`.\n" for what, option in command.words.items()]
            lines += ["```bash", *(f"sft-lightning {example}" for example in command.examples), "```", ""]
            options = _options(_help_of(name))
            new = {key: text for key, text in options.items() if name == "fit" or key not in of_fit}
            lines += _table("option", new.items() if not command.takes_fit or name != "fit" else ())
    lines += ["[Settings](settings.md) lists the options of `fit` that belong to this package.", ""]
    return "\n".join(lines)


def settings_page() -> str:
    """Return the reference of what `fit` takes below `--model` and `--data`."""
    from sft_lightning.cli.registry import describe_settings

    lines = [
        "# Settings",
        "",
        "Settings of `fit` below `--model` and `--data`, as options or as keys of a YAML config.",
    ]
    lines += ["The settings of Lightning's Trainer are below `--trainer`.", ""]
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, text in describe_settings().items():
        prefix, _, last = name.rpartition(".")
        groups.setdefault(prefix, []).append((last, text))
    for prefix, entries in groups.items():
        lines += [f"## {prefix}", "", *_table("setting", entries)]
    return "\n".join(lines)


def public_page() -> str:
    """Return a table of the public names that links to their reference."""
    import sft_lightning

    lines = ["# Public classes", "", "`from sft_lightning import ...`", "", "| class | |", "|---|---|"]
    for name in sft_lightning.__all__:
        cls = getattr(sft_lightning, name)
        first = (cls.__doc__ or "").partition("\n")[0]
        lines.append(f"| [`{name}`][{cls.__module__}.{name}] | {_escape(first)} |")
    return "\n".join([*lines, ""])


def api_page(title: str, packages: Iterable[str]) -> str:
    """Return a page that lists the public modules of some packages.

    Args:
        title: Heading of the page.
        packages: Names of packages below `sft_lightning`.
    """
    lines = [f"# {title}", ""]
    for package in packages:
        for module in _modules(PACKAGE / package):
            lines += [f"::: {module}", "    options: {heading_level: 2}", ""]
    return "\n".join(lines)


def _modules(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts)


def _help_of(name: str) -> str:
    from sft_lightning.__main__ import main

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return shown.getvalue()


def _options(text: str) -> dict[str, str]:
    """Return the options that a help lists, without those that every command has, each with its explanation."""
    found: dict[str, str] = {}
    current = None
    for line in text.partition("\noptions:\n")[2].splitlines():
        if match := OPTION.match(line):
            current = match[1]
            found[current] = line.partition("  ")[2][len(current) :].partition("  ")[2].strip()
        elif line.startswith(" " * 20) and current:
            found[current] += f" {line.strip()}"
        elif line and not line.startswith(" "):
            current = None
    return {
        name: said
        for name, said in found.items()
        if name.split(".")[-1] not in ("--help", "help", "--config", "--print_config")
    }


def _table(what: str, entries: Iterable[tuple[str, str]]) -> list[str]:
    rows = [f"| `{name}` | {_escape(text)} |" for name, text in entries]
    return [f"| {what} | |", "|---|---|", *rows, ""] if rows else []


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
