"""Progress of long work: a bar on a terminal, and now and then a line in the log where there is none."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info

T = TypeVar("T")
_SECONDS = 10.0  # between two lines


class LoggedProgress(Tqdm):
    """A bar that appears after a second, or lines every ten seconds where standard error is no terminal."""

    def __init__(self, total: int, desc: str, unit: str) -> None:
        """Start to count.

        Args:
            total: Number of things to do.
            desc: Name of the work.
            unit: Name of one thing.
        """
        super().__init__(total=total, desc=desc, unit=unit, disable=None, leave=False, delay=1)
        self._what, self._total, self._done = f"{desc}: ", total, 0
        self._next_line = time.monotonic() + _SECONDS

    def update(self, n: Any = 1) -> bool | None:
        """Count further things as done.

        Args:
            n: Number of things.
        """
        self._done += n
        if self.disable and time.monotonic() >= self._next_line and self._done < self._total:
            rank_zero_info(f"{self._what}{self._done:,} of {self._total:,} ...")
            self._next_line = time.monotonic() + _SECONDS
        shown: bool | None = super().update(n)
        return shown


def track(items: Sequence[T], desc: str, unit: str) -> Iterator[T]:
    """Yield items, and count each as done when the next one is asked for.

    Args:
        items: Things to work on.
        desc: Name of the work.
        unit: Name of one thing.
    """
    with LoggedProgress(len(items), desc, unit) as bar:
        for item in items:
            yield item
            bar.update()
