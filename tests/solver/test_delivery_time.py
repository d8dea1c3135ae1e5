"""The time after the choice is part of the plan."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lightning import solve
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.weights import write_weights
from sft_lightning.solver import starts, trainings
from sft_lightning.solver.find_starts import FoundStart
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.plan import DELIVERY_SECONDS, TRAININGS_END, Plan
from sft_lightning.solver.trials import Trials
from sft_lightning.transfer.candidates import Candidate

LIBRARY = "timm/test_resnet"


@pytest.fixture
def source(workdir: Path, write_folder: Callable[..., Path]) -> LabeledSource:
    write_folder(workdir / "images", {"train": 6, "unlabeled": 8, "test": 10}, classes=2)
    return read_source("images", workdir / "out", None, 16, 0, "data")


def try_source(source: LabeledSource, minutes: float) -> Trials:
    plan = Plan(Path("out/plan.json"), source.key, minutes)
    return Trials(source, plan, "some", Path("out"), lambda text: None)


def test_the_plan_counts_from_the_beginning_of_the_call_and_leaves_time_to_deliver(tmp_path: Path) -> None:
    plan = Plan(tmp_path / "plan.json", "data", 1.0, time.monotonic() - 10)
    assert plan.count_left(1.0) == pytest.approx(60 - DELIVERY_SECONDS - 10, abs=1)
    plan.reserved = 40.0
    assert plan.count_left(0.5) == pytest.approx(0, abs=1)
    assert plan.count_minutes(60.0, 0.5) == 3  # 120 s and the delivery


def test_delivery_passes_over_all_examples_on_the_dearest_space(source: LabeledSource) -> None:
    """12 labels, 16 unlabeled and 20 test images: two models are trained, to compare them, and predict 36 images."""
    trials = try_source(source, 1.0)
    trials.judge_pixels()
    pixels = trials.graph_seconds["pixels"]
    expected = trials.busyness * DELIVERY_SECONDS + (2 + 36 / 28) * pixels
    assert trials.plan.reserved == pytest.approx(expected)
    stage = trials.plan_delivery()
    assert stage.seconds == trials.plan.reserved
    assert stage.what.startswith("model on all labels, 16 predictions")


def test_a_busy_machine_delivers_later(source: LabeledSource, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = try_source(source, 1.0)

    def wait(*args: object) -> None:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        time.sleep(0.9)  # as if three others worked

    monkeypatch.setattr(trials, "judge", wait)
    trials.judge_pixels()
    assert trials.busyness > 3
    assert trials.plan.reserved > 3 * DELIVERY_SECONDS


def test_a_start_that_delivery_has_no_time_for_is_left_out(
    source: LabeledSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features fit into the minutes, but the test images are predicted at the end, too."""
    encoder, _ = build_encoder(LIBRARY, (3, 224, 224))
    write_weights(Path("weights.safetensors"), encoder.state_dict(), encoder.describe())
    found = FoundStart(Candidate(weights="weights.safetensors"), "a file")
    seconds = 40.0 / 28
    monkeypatch.setattr(starts, "measure_seconds", lambda network, learns: seconds)
    for minutes, fits in ((1.0, False), (4.0, True)):
        trials = try_source(source, minutes)
        trials.plan.reserved = DELIVERY_SECONDS
        chosen = trials.plan_starts([found])
        assert bool(chosen) == fits
        passes = trials.num_passes if fits else 0
        assert trials.plan.reserved == pytest.approx(DELIVERY_SECONDS + passes * 40.0, rel=0.01)
    assert trials.plan.stages[-1].name == "weights.safetensors"


def test_trainings_end_before_delivery(source: LabeledSource, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def plan_none(seconds: float, *rest: object) -> tuple[int, int]:
        asked.append(seconds)
        return 0, 0

    monkeypatch.setattr(trainings, "plan_halving", plan_none)
    encoder, _ = build_encoder(LIBRARY, (3, 32, 32))
    write_weights(Path("weights.safetensors"), encoder.state_dict(), encoder.describe())
    trials = try_source(source, 100.0)
    trials.judge_start(starts.load_start(Candidate(weights="weights.safetensors"), source, 0))
    trials.plan.reserved = 1000.0
    trainings.judge_trainings(trials)
    expected = TRAININGS_END * 5000.0 - trials.plan.elapsed - trials.count * trials.read_seconds
    assert asked == [pytest.approx(expected, abs=2)]


def test_the_plan_of_a_call_lists_the_delivery(
    workdir: Path, write_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(workdir / "images", {"train": 6, "unlabeled": 8})
    solution = solve(str(folder), minutes=0.1, name="plan", image_size=16)
    stages = json.loads((solution.folder / "plan.json").read_text())["stages"]
    (stage,) = [stage for stage in stages if stage["name"] == "delivery"]
    assert stage["seconds"] > DELIVERY_SECONDS
    assert f"Planned: {stage['what']}, " in capsys.readouterr().err
