"""Mistakes that are told before torch is imported, which takes seconds: files, runs and options that are not there.

What is not found here is found later, by the parser and the commands themselves, and told in the same sentences. Names
of options are read from the source of what takes them, Lightning's Trainer or the function of a command, whose import
is what takes long. Only a name that nearly is another one is refused: what else it may mean, the parser knows best.
"""

import ast
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft_lightning.cli.argv import add_run_config, option_values
from sft_lightning.cli.commands import COMMANDS, explain_missing, explain_unknown_option
from sft_lightning.cli.error_messages import NO_MODEL_OR_DATA, explain_missing_setting, explain_unknown_setting
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.runs.paths import find_run_checkpoint, get_run_folder
from sft_lightning.utils.errors import InputError, find_nearest
from sft_lightning.utils.yaml_files import read_yaml

_OF_FIT = ("config", "data", "fast_loop", "help", "model", "print_config", "run_name", "seed_everything", "trainer")
_OF_PYTHON = ("self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")  # no options
_CUTOFF = 0.8  # similarity of a name to the one that is meant


def check_early(words: Sequence[str]) -> None:
    """Looks at the words of a command.

    Args:
        words: As `commands.arranged` gives them, the command first.

    Raises:
        InputError: Something is wrong with them.
    """
    name, command = words[0], COMMANDS[words[0]]
    if len(words) == 1 and "RUN" in command.words:
        raise InputError(explain_missing(name, "RUN"))
    if len(words) == 1 and command.takes_fit:
        raise InputError(NO_MODEL_OR_DATA)
    options = known(name)
    for word in words[1:]:
        option = word.removeprefix("--").partition("=")[0].rstrip("+")
        if word.startswith("--") and (right := _meant(option, options)):
            raise InputError(explain_unknown_option(f"--{option}", f" (did you mean --{right}?)", name))
    for path in option_values(words, "--config", "-c"):
        if path.endswith((".yaml", ".yml")):
            _look_into(path, name, options)
    configs = [word.partition("=")[2] or word for word in words[1:]]
    if not command.function:
        configs += add_run_config(words)
    elif "run" in command.words.values() and name != "lineage":  # which takes what has no checkpoint, too
        for run in option_values(words, "--run"):
            folder = get_run_folder(find_run_checkpoint(run))
            configs += [str(folder / "fit.yaml")] if folder else []
    read: set[Path] = set()
    for path in configs:
        _read_nested(path, Path(), read)


def known(name: str) -> list[str]:
    """Options of a command, without the settings of classes and those that a command adds to the ones of `fit`.

    Args:
        name: Of the command.
    """
    command = COMMANDS[name]
    if command.function and not command.takes_fit:
        module, _, function = command.function.partition(":")
        return ["config", "help", "print_config", *_parameters(_source(module))[function]]
    methods = _parameters(_source("lightning.pytorch.trainer.trainer"))
    of_trainer = [f"trainer.{setting}" for setting in methods["__init__"]]
    return [*_OF_FIT, *of_trainer, *methods["fit" if command.function else name]]


def _meant(option: str, options: list[str]) -> str | None:
    """The option that one nearly is; None where it is one, may be one, or is like none."""
    top, _, rest = option.partition(".")
    given = f"{top}.{rest.partition('.')[0]}" if rest else top
    if given in options or (rest and (top != "trainer" or rest == "help")):  # what stands below is the parser's
        return None
    return next(iter(find_nearest(given, options, _CUTOFF)), None)


def _look_into(path: str, name: str, options: list[str]) -> None:
    """Reads a config."""
    if not Path(path).is_file():
        raise InputError(explain_missing_setting(path))
    found = read_yaml(path)
    for key in found if isinstance(found, dict) else ():
        if right := _meant(str(key), options):
            raise InputError(explain_unknown_option(repr(key), f" (did you mean {right!r}?)", name))
    trainer = found.get("trainer") if isinstance(found, dict) else None
    for key in trainer if isinstance(trainer, dict) else ():
        if right := _meant(f"trainer.{key}", options):
            raise InputError(
                explain_unknown_setting("Trainer", key, f" (did you mean {right.removeprefix('trainer.')!r}?)")
            )


def _read_nested(value: Any, path: Path, read: set[Path]) -> None:
    """Reads a config and those that it names, of which the parser would not say what is wrong."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _read_nested(one, path, read)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")):
        for inner in (path.parent / value, Path(locate_configs(value))):
            if inner.is_file() and inner.resolve() not in read:
                read.add(inner.resolve())
                _read_nested(read_yaml(inner), inner, read)


def _source(module: str) -> Path:
    """The file of a module, none of whose packages is imported."""
    package, _, rest = module.partition(".")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / f"{rest.replace('.', '/')}.py"


@cache
def _parameters(source: Path) -> dict[str, list[str]]:
    """Names of the parameters of each function and method of a file."""
    return {
        node.name: [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs) if arg.arg not in _OF_PYTHON]
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
