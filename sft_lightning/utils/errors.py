"""The one exception that means: the input is wrong, and here is what to do about it."""

import difflib
from collections.abc import Sequence


class InputError(Exception):
    """A mistake in the user's input.

    The message is one sentence that names the file or field, its value and the remedy. The command line prints
    it without a traceback and exits with code 2.
    """


class StoppedBySignal(Exception):  # noqa: N818  # it is none
    """A signal ended a training, which has saved; no mistake.

    Attributes:
        signal: Its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        """Keeps both.

        Args:
            message: What was saved and how to go on.
            signal: Its number.
        """
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type["StoppedBySignal"], tuple[str, int]]:
        return type(self), (str(self), self.signal)


class IssuesFound(Exception):  # noqa: N818  # it is no error
    """A command found what it was to look for; scripts shall stop.

    The message is what the command prints; the exit code is 1.
    """


def check_min(least: float, **settings: float | None) -> None:
    """Checks settings that have a lower bound.

    Args:
        least: The bound.
        settings: Values by name; None where one is not given.

    Raises:
        InputError: One is smaller, or not a number.
    """
    for name, value in settings.items():
        if value is not None and not value >= least:
            raise InputError(f"{name} is {value}: give a number of at least {least}")


def check_positive(**settings: float) -> None:
    """Checks settings that must be positive.

    Args:
        settings: By name.

    Raises:
        InputError: One is not.
    """
    for name, value in settings.items():
        if not value > 0:
            raise InputError(f"{name} is {value}: give a number above 0")


def check_fraction(**settings: float) -> None:
    """Checks settings that are shares or probabilities.

    Args:
        settings: By name.

    Raises:
        InputError: One is not from 0 to 1.
    """
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}: give a share from 0 to 1")


def check_decay(**settings: float) -> None:
    """Checks settings that say how much of an old value each step keeps.

    Args:
        settings: By name.

    Raises:
        InputError: One is not from 0 to below 1.
    """
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}: give a share from 0 to below 1")


def find_input_error(error: BaseException) -> InputError | None:
    """The user's mistake at the root of an exception that a library wrapped around it, or None.

    Args:
        error: What was caught.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, InputError):
        seen = seen.__cause__ or seen.__context__
    return seen


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Returns a hint with the known names closest to a misspelled one, or an empty string.

    Args:
        word: What the user wrote.
        known: The names that would have been right.
    """
    found = find_nearest(word, known)
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""


def find_nearest(word: str, known: Sequence[str], cutoff: float = 0.5) -> list[str]:
    """Up to three names that a misspelled one may mean, those that are about as close as the closest.

    Args:
        word: What the user wrote.
        known: The names that would have been right.
        cutoff: Similarity from 0 to 1 that is needed.
    """
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(None, match, word.lower()).ratio() for match in matches]
    return [by_lower[match] for match, ratio in zip(matches, ratios, strict=True) if ratio > max(ratios) - 0.12]
