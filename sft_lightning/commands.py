"""The commands around training: all but those of Lightning."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft_lightning.arguments import Parser
from sft_lightning.cli import prepare
from sft_lightning.lineage import lineage
from sft_lightning.preflight.audit import audit
from sft_lightning.report.preview import preview
from sft_lightning.report.report import report
from sft_lightning.reuse.degree import degree
from sft_lightning.reuse.parts import export
from sft_lightning.reuse.rank import rank
from sft_lightning.study.study import study


def run(words: Sequence[str]) -> int:
    """Runs one command and prints what it found.

    Args:
        words: Of the command line, the command first.

    Returns:
        The exit code: 0, or what the command gives beside its text.

    Raises:
        InputError: The input is wrong.
    """
    prepare()
    command, *rest = words
    given = COMMANDS[command](rest)
    text, code = given if isinstance(given, tuple) else (given, 0)
    sys.stdout.write(f"{text}\n")
    return code


def _called(command: str, function: Any, words: list[str], positional: str | None = None) -> Any:
    """What a function gives that is called with the options of the command line."""
    parser = Parser(prog=f"sft-lightning {command}")
    parser.add_argument("--config", action="config", help="YAML file with options.")
    if positional is not None:
        parser.add_argument(positional, type=str, help="Folder of a run, or a file in it.")
    skip: set[str | int] = set() if positional is None else {positional}
    parser.add_function_arguments(function, skip=skip, fail_untyped=True)
    given = parser.instantiate_classes(parser.parse_args(words)).as_dict()
    given.pop("config", None)
    return function(**given)


def _export(words: list[str]) -> str:
    file: Path = _called("export", export, words, "run")
    return f"Written: {file} and {file.with_suffix('.json')}"


def _report(words: list[str]) -> str:
    return f"Written: {_called('report', report, words, 'run')}"


def _rank(words: list[str]) -> str:
    return str(_called("rank", rank, words))


def _study(words: list[str]) -> str:
    return str(_called("study", study, words))


def _lineage(words: list[str]) -> str:
    return str(_called("lineage", lineage, words, "run"))


COMMANDS: dict[str, Callable[[list[str]], str | tuple[str, int]]] = {
    "export": _export,
    "lineage": _lineage,
    "rank": _rank,
    "degree": degree,
    "study": _study,
    "report": _report,
    "preview": preview,
    "audit": audit,
}
