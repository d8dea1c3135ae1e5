"""A callback of Lightning that needs a package says so in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import device_stats_monitor
from lightning_utilities.core.imports import RequirementCache

from sft_lightning import FineTuneClassifier
from sft_lightning.utils.errors import InputError
from tests.cli.test_bad_input import FINE_TUNE
from tests.paradigms.helpers import SHAPE


def test_device_stats_without_psutil(
    workdir: Path, cli_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_stats_monitor, "_PSUTIL_AVAILABLE", RequirementCache("psutil_that_is_not_there"))
    words = ["--trainer.accelerator=cpu", "--trainer.callbacks+=lightning.pytorch.callbacks.DeviceStatsMonitor"]
    said = cli_error("fit", "--config", FINE_TUNE, *words)
    assert "`DeviceStatsMonitor` cannot log CPU stats as `psutil` is not installed" in said
    assert "pip install" in said


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler", "regularizer", "adapter"])
def test_a_mapping_in_the_place_of_an_object_is_one_sentence(name: str) -> None:
    settings: dict[str, object] = {name: {"class_path": "a.B"}}
    with pytest.raises(InputError, match=rf"{name} is {{'class_path': 'a.B'}}: give .* \(in YAML, a class_path\)"):
        FineTuneClassifier("mlp", 10, SHAPE, **settings)  # type: ignore[arg-type]
