"""The words of the command line, before anything parses them. Nothing heavy is imported."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from sft_lightning.cli.commands import COMMANDS, format_usage
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.runs.paths import LOGS, find_checkpoint, get_run_folder
from sft_lightning.utils.errors import InputError

_NUMBER = re.compile(r"-\.?\d")
_FLAGS = ("-h", "--help", "--print_config", "--strict")  # no value follows them
_TAKE_CONFIGS = ("-c", "--config", "--data", "--model")  # whose value may name a shipped config


def normalize_argv(words: Sequence[str]) -> list[str]:
    """The words of a command with configs first, so that options win over files, and bare words by their names.

    Args:
        words: The command first.

    Raises:
        InputError: A word has no place.
    """
    name, *rest = words
    free = dict(COMMANDS[name].words)
    configs: list[str] = []
    others: list[str] = []
    taker: list[str] | None = None  # where the value of the option before goes
    for word in rest:
        if word.startswith("-") and not _NUMBER.match(word):
            group = configs if word.partition("=")[0] in ("-c", "--config") else others
            group.append(word)
            taker = None if "=" in word or word in _FLAGS else group
        elif taker is not None:
            taker.append(word)
            taker = None
        elif not free:
            raise InputError(_explain_extra_word(name, word))
        else:
            option = f"--{free.pop(next(iter(free)))}"
            if any(other.partition("=")[0] == option for other in rest):
                raise InputError(f"{name} is told {word!r} and {option}: give one of them")
            others.append(f"{option}={word}")
    return [name, *_locate_in_options([*configs, *others])]


def _locate_in_options(words: list[str]) -> list[str]:
    """Replace the names of shipped configs with their paths."""
    located: list[str] = []
    for before, word in pairwise(["", *words]):
        option, equals, value = word.partition("=")
        if before in _TAKE_CONFIGS:
            word = locate_configs(word)
        elif equals and option in _TAKE_CONFIGS:
            word = f"{option}={locate_configs(value)}"
        located.append(word)
    return located


def option_values(words: Sequence[str], *options: str) -> list[str]:
    """What an option is given, as `--option value` or `--option=value`.

    Args:
        words: Of the command line.
        options: Names of the option, with their dashes.
    """
    found = [value for option, value in pairwise(words) if option in options]
    return found + [word.partition("=")[2] for word in words if word.startswith(tuple(f"{name}=" for name in options))]


def add_run_config(args: Sequence[str]) -> list[str]:
    """Adds the config of the run that --ckpt_path names where no config is given.

    Args:
        args: Words of the command line, the command first.

    Raises:
        InputError: There is no such run.
    """
    words = list(args)
    if any(word.split("=")[0] in ("--config", "-c", "--help", "-h") for word in words):
        return words
    given = next(reversed(option_values(words, "--ckpt_path")), None)
    if given == "last" and (names := option_values(words, "--run_name")):
        given = str(find_checkpoint(given, Path(LOGS) / names[-1]))
    if given is None or given == "last":
        return words
    folder = get_run_folder(find_checkpoint(given, Path(LOGS)))
    if folder is not None and (folder / "fit.yaml").is_file():
        return [words[0], "--config", str(folder / "fit.yaml"), *words[1:]]
    raise InputError(
        f"ckpt_path {given!r} has no fit.yaml beside its checkpoints: add --config with that of its training"
    )


def _explain_extra_word(name: str, word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"{word!r} stands alone: give it as --config {word}"
    return (
        f"{word!r} is one word too many: give {format_usage(name)}, such as 'sft-lightning "
        f"{COMMANDS[name].examples[0]}'"
    )
