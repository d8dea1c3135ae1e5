"""The parser of the command line: its errors are one sentence, not a page of usage."""

import argparse
import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, get_loader, set_loader
from yaml import YAMLError  # type: ignore[import-untyped]

from sft_lightning.cli.error_messages import condense_error
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.yaml_files import check_text

_load_yaml = get_loader("yaml")


def _load_strictly(text: str) -> Any:
    check_text(text)
    return locate_configs(_load_yaml(text))  # jsonargparse reads a config in its folder, where its relative paths begin


# Also for values and for configs that configs name: jsonargparse takes a repeated key silently.
set_loader("yaml", _load_strictly, (YAMLError,))


class Parser(ArgumentParser):
    """Raises what the user did wrong as an `InputError`, and takes no abbreviated option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As argparse's."""
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """The options alone: usage, sentence and examples are told by `commands.opening`."""
        self.usage, self.description = argparse.SUPPRESS, None
        return super().format_help(formatter)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Shortens a message of jsonargparse.

        Args:
            message: Several lines, as a rule.
            ex: What caused it.

        Raises:
            InputError: Always, but for parsers inside this one.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        asked = re.search(r"Subcommand '(\w+)'", message)  # told by the parser above that of the command
        parser = _subparsers(self)[asked[1]] if asked else self
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise InputError(condense_error(message, parser.prog.split()[-1], flags)) from ex


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return action.choices
