"""What the tests of several promises compare with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.promises.killed import trained

Whole = Callable[..., Path]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of a training that nothing stopped: whole(words, ranks). It is trained once for the same words."""
    folders: dict[tuple[str, ...], Path] = {}

    def train(words: Sequence[str], ranks: int = 1) -> Path:
        key = (*words, str(ranks))
        if key not in folders:
            folder = tmp_path_factory.mktemp("whole")
            assert trained(words, folder, ranks=ranks) == [0] * ranks
            folders[key] = folder
        return folders[key]

    return train
