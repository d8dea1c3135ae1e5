"""Names that were changed: a class that still defines an old hook would be ignored without a word."""

import warnings

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


def warn_renamed(old: str, new: str) -> None:
    """Warn that a name is used which still works and will be removed.

    Args:
        old: Former name.
        new: Current name.
    """
    warnings.warn(f"{old} is now called {new}; version 0.4 will remove the old name", FutureWarning, stacklevel=3)
