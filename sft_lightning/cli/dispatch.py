"""Call the functions behind commands with the options of the command line."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_lightning.cli.commands import COMMANDS
from sft_lightning.cli.logging import silence_third_party
from sft_lightning.cli.parser import Parser
from sft_lightning.cli.process_state import preserve_process


def run_command(argv: Sequence[str]) -> None:
    """Run one command and print its result.

    Args:
        argv: Arguments of the command line, the command first.

    Raises:
        InputError: The input is wrong.
    """
    name, *rest = argv
    module, _, attribute = COMMANDS[name].function.partition(":")
    # Imported before `preserve_process`, as Lightning's changes at import should stay.
    function = getattr(importlib.import_module(module), attribute)
    with preserve_process():
        silence_third_party()
        options = {} if COMMANDS[name].takes_fit else _parse_options(name, function, rest)
        if "torch" in sys.modules:  # else the command does not need it, and should not wait for its import
            from sft_lightning.cli.lightning_cli import prepare_process

            prepare_process()
        result = function(rest) if COMMANDS[name].takes_fit else function(**options)
        if result:  # processes other than the first return nothing
            sys.stdout.write(f"{_format_result(name, result)}\n")


def _parse_options(name: str, function: Any, argv: list[str]) -> dict[str, Any]:
    parser = Parser(prog=f"sft-lightning {name}")
    parser.add_argument("--config", action="config", help="YAML file with options.")
    parser.add_function_arguments(function, fail_untyped=True)
    options: dict[str, Any] = parser.instantiate_classes(parser.parse_args(_name_data(argv))).as_dict()
    options.pop("config", None)
    return options


def _name_data(argv: list[str]) -> list[str]:
    """Let settings of data mean those of images where neither an option nor a config names the class."""
    names = {word.partition("=")[0] for word in argv}
    is_named = names & {"--data", "--config"} or any(name.startswith("--data.class_path") for name in names)
    has_settings = any(name.startswith("--data.") for name in names)
    return argv if is_named or not has_settings else ["--data=ImageDataModule", *argv]


def _format_result(name: str, result: Any) -> str:
    if not isinstance(result, Path):
        return str(result)
    stem = result.name.removesuffix(".safetensors")
    files = [result, *(result.with_name(file.format(stem=stem)) for file in COMMANDS[name].beside)]
    *first, last = map(str, files)
    return f"Written: {', '.join(first)} and {last}" if first else f"Written: {last}"
