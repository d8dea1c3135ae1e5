"""Compare `scripts/bench/scaling.py` with numbers computed by hand."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
from scaling import TRAININGS, Training, estimate, read_overhead

SIMPLE = Training("simple", parameters=250_000_000, pixels=1000, encoded=500, batch=100, speed=1000)


def test_estimates_for_one_and_two_machines_equal_hand_computed_values() -> None:
    """1 GB of gradients: a step takes 100 ms, the ring of 8 GPUs sends 1.75 GB and that of 16 GPUs 1.875 GB."""
    one_gpu, machine, two_machines = (
        estimate(SIMPLE, n, network=10, link=100, storage=1, overhead=0.0) for n in (1, 8, 16)
    )
    assert (one_gpu.sent, one_gpu.efficiency) == (0, (1, 1))
    assert (machine.sent, machine.communicate_ms) == pytest.approx((1750, 17.5))
    assert machine.efficiency == pytest.approx((100 / 117.5, 1))  # 17.5 ms overlap with 66.7 ms of the backward pass
    assert (two_machines.sent, two_machines.communicate_ms) == pytest.approx((1875, 187.5))
    assert two_machines.efficiency == pytest.approx((100 / 287.5, 100 / (100 + 187.5 - 200 / 3)))
    assert machine.hours == pytest.approx((1e8 / (8 * 100 / 0.1175) / 3600, 1e8 / 8000 / 3600))
    assert (machine.read_pixels, machine.read_encoded) == pytest.approx((8e-3, 4e-3))
    assert machine.storage_gpus == pytest.approx((1000, 2000))
    assert estimate(SIMPLE, 1, 10, 100, 1, overhead=0.1).compute_ms == pytest.approx(200)


def test_overhead_is_the_median_of_the_stored_budget(tmp_path: Path) -> None:
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps({"budgets": [{"name": "step_overhead/overhead", "numbers": [100, 400, 200]}]}))
    assert read_overhead(path) == pytest.approx(200e-6)
    assert read_overhead(None) == 500e-6


def test_wide_resnet_has_the_assumed_number_of_parameters() -> None:
    from sft_lightning.networks.vision.backbones import build_backbone

    backbone, _ = build_backbone("wrn_28_2", (3, 32, 32))
    count = sum(p.numel() for p in backbone.parameters()) + 10 * (backbone.num_features + 1)
    assert count == TRAININGS["fixmatch"].parameters
