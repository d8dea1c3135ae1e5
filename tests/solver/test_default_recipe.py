"""Without evidence for another recipe, `solve` takes the one that is rarely far from the best."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_lightning.networks.build import build_encoder
from sft_lightning.solver.deliver import Delivery
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.recipes import Recipe
from sft_lightning.solver.space import Space
from sft_lightning.solver.trials import Result, Trials
from sft_lightning.solver.verdict import format_verdict
from sft_lightning.study.judge import Estimate


@pytest.fixture
def source(workdir: Path, write_folder: Callable[..., Path]) -> LabeledSource:
    write_folder(workdir / "few", {"train": 7, "unlabeled": 4})
    return read_source("few", workdir, None, 16, 0, "data")


def add(trials: Trials, name: str, right: int, is_network: bool = True, saw_pool: bool = False) -> int:
    """Add a result with the first labels right, and return its position."""
    scores = np.broadcast_to((np.arange(21) < right).astype(float), trials.folds.shape)
    network = build_encoder("resnet8", trials.source.data.input_spec)[0] if is_network else None
    space = Space(name.rpartition(" on ")[2], (), 8, network, saw_pool)
    recipe = Recipe(name, name.startswith(("smoothed", "label")), ())
    estimate = trials.estimate(scores)[1]
    trials.results.append(Result(recipe, trials.source, estimate, scores, space, torch.empty(0)))
    return len(trials.results) - 1


def test_a_recipe_on_a_start_is_left_for_a_clear_lead_alone(source: LabeledSource) -> None:
    trials = Trials(source, Plan(Path("plan.json"), source.key, 1), "mine", Path(), lambda text: None)
    add(trials, "label spreading on pixels", 15, is_network=False)
    assert trials.find_default([0]) is None
    assert trials.choose() == 0
    seen = add(trials, "smoothed logistic regression on one that saw the pool", 15, saw_pool=True)
    assert trials.choose() == 0
    plain = add(trials, "logistic regression on a", 14)
    assert trials.choose() == plain  # the lead of one label is chance
    smoothed = add(trials, "smoothed logistic regression on a", 14)
    other = add(trials, "smoothed logistic regression on b", 13)
    assert trials.choose() == smoothed
    assert trials.find_default([0, plain, other]) == 2
    assert trials.choose([0, plain]) == plain
    assert trials.choose([0, seen]) == 0
    ahead = add(trials, "label spreading on a", 19)
    assert trials.choose() == ahead
    choice = trials.score_choice(range(len(trials.results)))
    assert choice.shape == trials.folds.shape
    assert trials.estimate_choice().mean == pytest.approx(choice.mean())
    found = trials.compare_choices([ahead], [plain])
    assert found.difference == pytest.approx(5 / 21)


@pytest.mark.parametrize(
    ("is_ahead", "said"),
    [(True, "The best of 3 recipes is a. A"), (False, "Of 3 recipes, none is clearly ahead of a.")],
)
def test_the_verdict_says_whether_the_recipe_is_ahead(source: LabeledSource, is_ahead: bool, said: str) -> None:
    delivery = Delivery(Path(), None)  # type: ignore[arg-type] # no temperature is needed
    verdict = format_verdict("a", 3, source, Estimate(0.5, 0.4, 0.6), None, "b", delivery, is_ahead=is_ahead)
    assert verdict[0].startswith(said)
