"""The arguments of the command line before they are parsed. Nothing heavy is imported."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from sft_lightning.cli.commands import COMMANDS, format_usage
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.runs.checkpoints import find_checkpoint
from sft_lightning.runs.paths import LOGS, get_run_folder
from sft_lightning.utils.errors import InputError

_NUMBER = re.compile(r"-\.?\d")
_FLAGS = ("-h", "--help", "--print_config", "--strict")  # no value follows them
_TAKE_CONFIGS = ("-c", "--config", "--data", "--model")  # whose value may name a shipped config


def normalize_argv(argv: Sequence[str]) -> list[str]:
    """Put configs first, so that options win over files, and turn bare words into options.

    Args:
        argv: Arguments of the command line, the command first.

    Returns:
        Arguments that argparse understands, the command first.

    Raises:
        InputError: A bare word is one too many, or repeats an option.
    """
    name, *rest = argv
    free = dict(COMMANDS[name].words)
    configs: list[str] = []
    others: list[str] = []
    awaiting: list[str] | None = None  # the group of the last option, which its value follows
    for word in rest:
        if word.startswith("-") and not _NUMBER.match(word):
            group = configs if word.partition("=")[0] in ("-c", "--config") else others
            group.append(word)
            awaiting = None if "=" in word or word in _FLAGS else group
        elif awaiting is not None:
            awaiting.append(word)
            awaiting = None
        elif not free:
            raise InputError(_explain_extra_word(name, word))
        else:
            option = f"--{free.pop(next(iter(free)))}"
            if any(other.partition("=")[0] == option for other in rest):
                raise InputError(f"{name} is given both {word!r} and {option}: give one of them")
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


def option_values(argv: Sequence[str], *options: str) -> list[str]:
    """Return the values of an option, given as `--option value` or `--option=value`.

    Args:
        argv: Arguments of the command line.
        options: Names of the option, with their dashes.
    """
    values = [value for option, value in pairwise(argv) if option in options]
    prefixes = tuple(f"{name}=" for name in options)
    return values + [arg.partition("=")[2] for arg in argv if arg.startswith(prefixes)]


def add_run_config(args: Sequence[str]) -> list[str]:
    """Add the config of the run that --ckpt_path names, unless a config is given.

    Args:
        args: Arguments of the command line, the command first.

    Raises:
        InputError: The run does not exist.
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
