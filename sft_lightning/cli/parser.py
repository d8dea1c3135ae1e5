"""The parser of the command line: its errors are one sentence instead of a page of usage."""

import argparse
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace, get_loader, set_dumper, set_loader

from sft_lightning.cli.error_messages import condense_error
from sft_lightning.cli.setting_groups import list_setting_groups
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.yaml_files import check_text

_load_yaml = get_loader("yaml")


def _load_strictly(text: str) -> Any:
    check_text(text)
    return locate_configs(_load_yaml(text))  # jsonargparse reads a config in its folder, where its relative paths begin


# Also for values and for configs inside of configs: jsonargparse silently takes a repeated key.
set_loader("yaml", _load_strictly, (yaml.YAMLError,))

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same in C; a run writes each of its classes several times


def _dump_yaml(values: Any) -> str:
    text: str = yaml.dump(values, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


set_dumper("yaml", _dump_yaml)


class Parser(ArgumentParser):
    """A parser that raises mistakes of the user as `InputError` and takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of argparse's parser."""
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._classes: list[tuple[type, str]] = []
        self._class_defaults: Namespace | None = None

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Return the default values, with the arguments of jsonargparse's method.

        Those of a class are computed once: its parser never changes, and one run asks for them dozens of times.
        """
        if self.exit_on_error:  # the parser of a command, not one inside of it
            return super().get_defaults(*args, **kwargs)
        if self._class_defaults is None:
            self._class_defaults = super().get_defaults(*args, **kwargs)
        return self._class_defaults.clone()

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> list[str]:
        """Add the settings of a class, and remember them for the groups of the help.

        Args:
            theclass: Class whose parameters become options.
            nested_key: Prefix of the options.
            args: Further arguments of jsonargparse's method.
            kwargs: Further arguments of jsonargparse's method.

        Returns:
            Names of the options.
        """
        self._classes.append((theclass, nested_key or ""))
        added: list[str] = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        return added

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Format the options alone: `format_command_help` writes usage, sentence and examples.

        Args:
            formatter: Formatter in place of the default one.
        """
        self.usage, self.description = argparse.SUPPRESS, None
        for cls, key in self._classes:
            groups = list_setting_groups(cls)
            for title, names in groups.items():
                self._move_to_group(title, {f"{key}.{name}".lstrip(".") for name in names})
            # Groups of nested classes come last.
            self._action_groups = sorted(self._action_groups, key=lambda group: group.title not in groups)
        return super().format_help(formatter)

    def _move_to_group(self, title: str, options: set[str]) -> None:
        """List some options under a title of their own; parsing does not look at groups."""
        moved = self.add_argument_group(title)._group_actions
        for group in self._action_groups[:-1]:
            moved += [action for action in group._group_actions if action.dest in options]
            group._group_actions[:] = [action for action in group._group_actions if action.dest not in options]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a message of jsonargparse as one sentence.

        Args:
            message: Message of jsonargparse, often of several lines.
            ex: Exception behind the message.

        Raises:
            InputError: Always, except in parsers inside of this one.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        flags = [flag for action in list_actions(self) for flag in action.option_strings]
        raise InputError(condense_error(message, self.prog.split()[-1], flags)) from ex


def list_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options and subcommands of a parser, which argparse keeps without a public name.

    Args:
        parser: Parser of argparse or jsonargparse.
    """
    return parser._actions
