"""Calls the functions behind commands with the options of the command line."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_lightning.cli.commands import COMMANDS
from sft_lightning.cli.logging import silence_third_party
from sft_lightning.cli.parser import Parser
from sft_lightning.cli.process_state import preserve_process


def run_command(words: Sequence[str]) -> None:
    """Runs one command and prints what it found.

    Args:
        words: Of the command line, the command first.

    Raises:
        InputError: The input is wrong.
    """
    name, *rest = words
    module, _, attribute = COMMANDS[name].function.partition(":")
    # Imported first: what Lightning sets up when it is imported stays, and is no change of the command.
    function = getattr(importlib.import_module(module), attribute)
    with preserve_process():
        silence_third_party()
        given = {} if COMMANDS[name].takes_fit else _parse_options(name, function, rest)
        if "torch" in sys.modules:  # else the command needs none of it, and answers before it would be imported
            from sft_lightning.cli.lightning_cli import prepare_process

            prepare_process()
        found = function(rest) if COMMANDS[name].takes_fit else function(**given)
        if found:  # of a process beside the first: nothing
            sys.stdout.write(f"{_format_result(name, found)}\n")


def _parse_options(name: str, function: Any, words: list[str]) -> dict[str, Any]:
    parser = Parser(prog=f"sft-lightning {name}")
    parser.add_argument("--config", action="config", help="YAML file with options.")
    parser.add_function_arguments(function, fail_untyped=True)
    given: dict[str, Any] = parser.instantiate_classes(parser.parse_args(words)).as_dict()
    given.pop("config", None)
    return given


def _format_result(name: str, found: Any) -> str:
    if not isinstance(found, Path):
        return str(found)
    stem = found.name.removesuffix(".safetensors")
    files = [found, *(found.with_name(file.format(stem=stem)) for file in COMMANDS[name].beside)]
    *first, last = map(str, files)
    return f"Written: {', '.join(first)} and {last}" if first else f"Written: {last}"
