"""`sft-lightning completion SHELL`: a completion script that runs without Python.

jsonargparse's own script holds every class of every imported library (80 MB); this one holds the options in the help of
the commands and the settings of our classes.
"""

import argparse
from collections.abc import Iterator
from typing import Any, Literal

from jsonargparse import capture_parser

from sft_lightning.cli.commands import COMMANDS
from sft_lightning.cli.dispatch import run_command
from sft_lightning.cli.lightning_cli import run
from sft_lightning.cli.parser import list_actions
from sft_lightning.cli.registry import OURS, describe_settings
from sft_lightning.cli.shipped_configs import list_shipped
from sft_lightning.utils.errors import InputError

# Last components of options whose value is a file or folder.
_PATHS = {
    "config", "data", "ckpt_path", "weights", "head_weights", "source", "unlabeled_source", "predict_source", "root",
    "split_file", "labels", "ids", "static", "default_root_dir", "run", "out", "candidates",
}  # fmt: skip

# bash splits `--config=a` into three words, of which the last may be missing.
_EQUALS = """
_sft_lightning() {
  local k at=$COMP_CWORD
  local -a words=()
  for k in "${!COMP_WORDS[@]}"; do
    if [[ ${COMP_WORDS[k]} != "=" ]]; then
      words+=("${COMP_WORDS[k]}")
    elif (( k == COMP_CWORD )); then
      words+=("")
    elif (( k < COMP_CWORD )); then
      (( at -= 1 ))
    fi
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$at
  _shtab_sft_lightning "$@"
}
complete -o bashdefault -F _sft_lightning sft-lightning
"""


def make_completion(shell: Literal["bash", "zsh"]) -> str:
    """Make a script that completes commands, options and files at the TAB key.

    Args:
        shell: Shell that runs the script, `bash` or `zsh`.

    Raises:
        InputError: The extra `completion` is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise InputError("completion needs shtab: pip install 'sft-lightning[completion]'") from error
    root = argparse.ArgumentParser("sft-lightning")
    root.add_argument("--version", action="store_true", help="Print the version.")
    commands = root.add_subparsers()
    fit = describe_settings()
    choices_of_words = {"SHELL": ("bash", "zsh"), "ACTION": ("list", "copy"), "NAME": list_shipped()}
    for name, command in COMMANDS.items():
        parser = commands.add_parser(name, help=command.does)
        options = list(_iterate_options(name))
        options += [(f"--{option}", text, []) for option, text in fit.items()] if command.takes_fit else []
        for option, text, choices in options:
            added = parser.add_argument(option, help=" ".join(text.replace("%", "").split()), choices=choices or None)
            _set_completion(added, option.strip("-+").rpartition(".")[2], shtab.FILE)
        for what, option in command.words.items():
            word = parser.add_argument(what, nargs="?", choices=choices_of_words.get(what))
            _set_completion(word, option.rpartition(".")[2], shtab.FILE)
    script: str = shtab.complete(root, shell)
    return script + _EQUALS if shell == "bash" else script


def _set_completion(action: argparse.Action, last: str, files: Any) -> None:
    if last in _PATHS:
        action.complete = files  # type: ignore[attr-defined]
    elif last in OURS and not action.choices:
        action.choices = OURS[last]
    elif last == "backbone":
        from torchvision.models import list_models

        action.choices = ["mlp", "conv", "resnet8", "wrn_28_2", *(f"torchvision/{name}" for name in list_models())]


def _iterate_options(name: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each option of a command's own parser with its help and its choices."""
    parser: Any = capture_parser(lambda: (run_command if COMMANDS[name].function else run)([name]))
    for action in list_actions(parser):
        if isinstance(action, argparse._SubParsersAction):
            (parser,) = action.choices.values()
    for action in list_actions(parser):
        for option in action.option_strings:
            shown = option != "--help" and not (option.startswith("--trainer.") and option.endswith(".help"))
            if option.startswith("--") and shown:
                yield option, action.help or "", _parse_choices(action)


def _parse_choices(action: argparse.Action) -> list[str]:
    shown = action.metavar if isinstance(action.metavar, str) else ""
    return shown[1:-1].split(",") if shown.startswith("{") else []
