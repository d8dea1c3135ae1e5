"""Solutions of tests find no weights that this machine happens to have fetched."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _empty_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        yield
