"""Hooks that were renamed: a class that still defines the old name would be ignored without a word."""

from sft_lightning.utils.errors import InputError


def refuse_renamed(cls: type, **names: str) -> None:
    """Refuse a class that defines a hook under its former name.

    Args:
        cls: Class whose body is checked.
        names: Former names of hooks, each with the current one.

    Raises:
        InputError: The class defines one of them.
    """
    for old, new in names.items():
        if old in vars(cls):
            raise InputError(f"{cls.__module__}.{cls.__name__} defines {old}, which is now called {new}: rename it")
