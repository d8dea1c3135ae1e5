"""The exception for wrong input, whose message says what to do about it, and checks that raise it."""

import difflib
import math
from collections.abc import Sequence


class InputError(Exception):
    """An error in the user's input.

    The message is one sentence that names the file or field, its value and the remedy. The command line prints
    it without a traceback and exits with code 2.
    """


class StoppedBySignal(Exception):  # noqa: N818  # not an error
    """Raised when a signal stops training after a checkpoint was saved. Not an error.

    Attributes:
        signal: Number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        """Keep the message and the signal.

        Args:
            message: Sentence that says what was saved and how to resume.
            signal: Number of the signal.
        """
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type["StoppedBySignal"], tuple[str, int]]:
        return type(self), (str(self), self.signal)


class IssuesFound(Exception):  # noqa: N818  # not an error
    """Raised when a command finds the issues that it looks for, so that a script stops. Not an error.

    The message is what the command prints; the exit code is 1.
    """


def check_min(least: float, **settings: float | None) -> None:
    """Check settings that have a lower bound.

    Args:
        least: Smallest allowed value.
        settings: Values by name; None for a value that is not given.

    Raises:
        InputError: A value is smaller, infinite, or not a number.
    """
    for name, value in settings.items():
        if value is not None and not least <= value < math.inf:
            raise InputError(f"{name} is {value}: give a number of at least {least}")


def check_positive(**settings: float | None) -> None:
    """Check settings that must be positive.

    Args:
        settings: Values by name; None for a value that is not given.

    Raises:
        InputError: A value is not positive, or infinite.
    """
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} is {value}: give a number above 0")


def check_fraction(**settings: float) -> None:
    """Check settings that are fractions or probabilities.

    Args:
        settings: Values by name.

    Raises:
        InputError: A value is not from 0 to 1.
    """
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}: give a share from 0 to 1")


def check_decay(**settings: float) -> None:
    """Check settings that say how much of an old value each step keeps.

    Args:
        settings: Values by name.

    Raises:
        InputError: A value is negative, or 1 or more.
    """
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}: give a share from 0 to below 1")


def find_input_error(error: BaseException) -> InputError | None:
    """Return the `InputError` that a library's exception is wrapped around, or None.

    Args:
        error: Exception that was caught.
    """
    current: BaseException | None = error
    while current is not None and not isinstance(current, InputError):
        current = current.__cause__ or current.__context__
    return current


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a hint with the valid names closest to a misspelled one, or an empty string.

    Args:
        word: Name as the user wrote it.
        known: Valid names.
    """
    nearest = find_nearest(word, known)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""


def find_nearest(word: str, known: Sequence[str], cutoff: float = 0.5) -> list[str]:
    """Return up to three valid names that a misspelled one may mean: the closest, and those about as close.

    Args:
        word: Name as the user wrote it.
        known: Valid names.
        cutoff: Least similarity, from 0 to 1.
    """
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(None, match, word.lower()).ratio() for match in matches]
    return [by_lower[match] for match, ratio in zip(matches, ratios, strict=True) if ratio > max(ratios) - 0.12]


def describe_failure(error: Exception) -> str:
    """Describe why a run failed, for a command that makes many of them.

    Args:
        error: Error of the run: bad input, settings that do not go together, or too little memory.

    Raises:
        Exception: The error itself, if it is a bug.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    found = find_input_error(error) or error
    if not isinstance(found, (InputError, MisconfigurationException, RuntimeError, MemoryError)):
        raise error
    return " ".join(str(found).split()) or "memory ran out"  # of which Python says no more
