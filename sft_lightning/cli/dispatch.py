"""Call the functions behind commands with the options of the command line."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from sft_lightning.cli.commands import COMMANDS
from sft_lightning.cli.logging import silence_third_party
from sft_lightning.cli.parser import Parser
from sft_lightning.cli.process_state import preserve_process
from sft_lightning.utils.errors import InputError


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
    settings: dict[str, Any] = {}
    if name == "study":
        argv, settings = _split_data_settings(argv)
    options: dict[str, Any] = parser.instantiate_classes(parser.parse_args(_name_data(argv))).as_dict()
    options.pop("config", None)
    _add_data_settings(options, settings)
    return options


def _split_data_settings(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the words without `--data.NAME VALUE`, and these settings by NAME.

    The data of a study is a mapping, beside whose `init_args` jsonargparse would put a setting that then goes unread.
    """
    rest: list[str] = []
    settings: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("--data."):
            key = option.removeprefix("--data.").removeprefix("init_args.")
            settings[key] = _read_value(option, value if equals else next(words, ""))
        else:
            rest.append(word)
    return rest, settings


def _read_value(option: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{option} is {text!r}, which cannot be read as YAML: put it in quotes") from error


def _add_data_settings(options: dict[str, Any], settings: dict[str, Any]) -> None:
    """Add settings to the data of a study, or where it leaves the data to its stages, to the options of all of them."""
    for key, value in settings.items():
        if key == "class_path":
            options["data"] = {**(options.get("data") or {}), key: value}
        elif not options.get("data"):
            options["options"] = {**(options.get("options") or {}), f"data.init_args.{key}": value}
        else:
            *path, last = ["init_args", *key.split(".")]
            place = options["data"]
            for part in path:
                if not isinstance(place.get(part), dict):
                    place[part] = {}
                place = place[part]
            place[last] = value


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
