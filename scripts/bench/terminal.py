"""A terminal that discards its output, so that benchmarks include the cost of the progress bar."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Terminal:
    """Standard output that claims to be a terminal and keeps nothing, so that long runs use no memory for it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """Return True, so that the progress bar is drawn."""
        return True

    def write(self, text: str) -> int:
        """Discard the text and return its length."""
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


@contextmanager
def discard_terminal_output() -> Iterator[None]:
    """Replace standard output with a terminal that shows nothing."""
    stdout, sys.stdout = sys.stdout, _Terminal()
    try:
        yield
    finally:
        sys.stdout = stdout
