"""Check files, runs and YAML before importing torch, which takes seconds.

Everything else, such as the names of options, is left to the parser, which reports it in the same sentences.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_lightning.cli.argv import add_run_config, option_values
from sft_lightning.cli.commands import COMMANDS, explain_missing
from sft_lightning.cli.error_messages import NO_MODEL_OR_DATA, explain_missing_setting
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.paths import get_run_folder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.yaml_files import read_yaml

_YAML = (".yaml", ".yml")


def check_early(argv: Sequence[str]) -> None:
    """Check what the arguments of a command name on disk.

    Args:
        argv: Arguments as `normalize_argv` returns them, the command first.

    Raises:
        InputError: A file or run does not exist, a YAML file cannot be read, or the command was given nothing.
    """
    name, command = argv[0], COMMANDS[argv[0]]
    if len(argv) == 1 and "RUN" in command.words:
        raise InputError(explain_missing(name, "RUN"))
    if len(argv) == 1 and command.takes_fit:
        raise InputError(NO_MODEL_OR_DATA)
    for path in option_values(argv, "--config", "-c"):
        if path.endswith(_YAML) and not Path(path).is_file():
            raise InputError(explain_missing_setting(path))
    configs = [arg.partition("=")[2] or arg for arg in argv[1:]]
    if not command.function:
        configs += add_run_config(argv)
    elif "run" in command.words.values() and name != "lineage":  # which also takes a run without a checkpoint
        for run in option_values(argv, "--run"):
            folder = get_run_folder(find_run_checkpoint(run))
            configs += [str(folder / "fit.yaml")] if folder else []
    checked: set[Path] = set()
    for path in configs:
        _check_configs(path, Path(), checked)


def _check_configs(value: Any, folder: Path, checked: set[Path]) -> None:
    """Read a config and those that it names: for these the parser would not say which file is at fault."""
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            _check_configs(child, folder, checked)
    elif isinstance(value, str) and value.endswith(_YAML):
        for path in (folder / value, Path(locate_configs(value))):
            if path.is_file() and path.resolve() not in checked:
                checked.add(path.resolve())
                _check_configs(read_yaml(path), path.parent, checked)
