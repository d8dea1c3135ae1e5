"""`scripts/bench/scaling.py` against numbers worked out by hand."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from scaling import TRAININGS, Training, line, overhead_of

SIMPLE = Training("simple", parameters=250_000_000, pixels=1000, encoded=500, batch=100, speed=1000)


def test_one_machine_and_two() -> None:
    """1 GB of gradients: a step takes 100 ms, the ring of 8 sends 1.75 GB, that of 16 1.875."""
    alone, one, two = (line(SIMPLE, n, network=10, link=100, storage=1, overhead=0.0) for n in (1, 8, 16))
    assert (alone.sent, alone.efficiency) == (0, (1, 1))
    assert (one.sent, one.communicate_ms) == pytest.approx((1750, 17.5))
    assert one.efficiency == pytest.approx((100 / 117.5, 1))  # it hides in 66.7 ms
    assert (two.sent, two.communicate_ms) == pytest.approx((1875, 187.5))
    assert two.efficiency == pytest.approx((100 / 287.5, 100 / (100 + 187.5 - 200 / 3)))
    assert one.hours == pytest.approx((1e8 / (8 * 100 / 0.1175) / 3600, 1e8 / 8000 / 3600))
    assert (one.read_pixels, one.read_encoded) == pytest.approx((8e-3, 4e-3))
    assert one.storage_gpus == pytest.approx((1000, 2000))
    assert line(SIMPLE, 1, 10, 100, 1, overhead=0.1).compute_ms == pytest.approx(200)


def test_the_overhead_is_the_budgets(tmp_path: Path) -> None:
    found = tmp_path / "budgets.json"
    found.write_text(json.dumps({"budgets": [{"name": "step_overhead/overhead", "numbers": [100, 400, 200]}]}))
    assert overhead_of(found) == pytest.approx(200e-6)
    assert overhead_of(None) == 500e-6


def test_wide_resnet_is_as_large_as_assumed() -> None:
    from sft_lightning.networks.vision.backbones import build_backbone

    backbone, _ = build_backbone("wrn_28_2", (3, 32, 32))
    count = sum(p.numel() for p in backbone.parameters()) + 10 * (backbone.num_features + 1)
    assert count == TRAININGS["fixmatch"].parameters
