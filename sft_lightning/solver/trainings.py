"""Trainings from the best starts by successive halving: a third of the steps first, all for the better half."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace

from sft_lightning.cli.logging import silence_logs
from sft_lightning.networks.build import build_encoder
from sft_lightning.solver.judged import halve
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.plan import (
    PATIENCE,
    START_SECONDS,
    STEP_OVERHEAD,
    TRAINING_STEPS,
    TRAININGS_END,
    Cost,
    Stage,
    plan_halving,
    predict_halving,
)
from sft_lightning.solver.recipes import Recipe, make_trainings
from sft_lightning.solver.space import Space
from sft_lightning.solver.speed import measure_seconds
from sft_lightning.solver.starts import SIZES, estimate_fill
from sft_lightning.solver.trials import Result, Trials
from sft_lightning.transfer.candidates import load_candidate
from sft_lightning.utils.errors import InputError

NAME = "trainings"
_WITH_GRADIENT = 3  # times as long as a forward pass takes one that learns, about
_STARTS = 2  # best starts that trainings go on from


@dataclass(frozen=True)
class Training:
    """A training from a start, of any number of steps.

    Attributes:
        space: Space of the start.
        kind: Position among the recipes of `make_trainings`.
    """

    space: Space
    kind: int

    def make(self, steps: int) -> Recipe:
        """Return the recipe.

        Args:
            steps: Number of optimizer steps.
        """
        assert self.space.source is not None
        return make_trainings(self.space, self.space.source, steps)[self.kind]


def judge_trainings(trials: Trials) -> None:
    """Judge trainings from the best starts, as far as the time allows it.

    Args:
        trials: Trials of the classifiers on the features of all starts, whose results rank the starts.
    """
    plan, ranked = trials.plan, trials.rank_spaces()
    random = _list_random(trials)
    if not ranked and not random:
        trials.announce(plan.drop(NAME, "fine-tuning: it needs a start (name one with --candidates)"))
        return
    chosen, others = ranked[:_STARTS], ranked[_STARTS:]
    for space in others:
        ahead = " and ".join(one.name for one in chosen)
        plan.drop(f"trainings from {space.name}", f"trainings from {space.name}: {ahead} give better features")
    # Starts of a library first; where random weights are tried, networks of this pool alone gave less (docs/audio.md).
    chosen = [*chosen, *random] if any(space.is_large for space in chosen) else [*random, *chosen]
    stage = plan.decide(NAME, lambda: _decide(trials, chosen))
    if not trials.announce(stage):
        return
    trainings = _list_trainings(chosen, stage.settings.get("image_size", 0), trials.source)
    final, steps = stage.settings.get("final", 0), stage.settings["steps"]
    seconds = max(stage.seconds - final, min(PATIENCE * stage.seconds, plan.count_left(1.0)) - final)
    end = time.monotonic() + seconds
    trainings = trainings[: stage.settings["count"]]
    halve(plan, [one.make for one in trainings], steps, lambda i, count: _judge(trials, trainings[i], count, end))


def _list_random(trials: Trials) -> list[Space]:
    """Return the network with random weights, if trainings from it are to be compared."""
    choices = trials.source.modality.solve
    if not choices.starts_random:
        return []
    network, _ = build_encoder(choices.pretrained, trials.spec)
    plain = trials.results[0].space  # whose vectors say what to label next
    argv = (f"--model.backbone={choices.pretrained}",)
    source = trials.source.view(network.input_spec)
    return [replace(plain, name="random weights", argv=argv, backbone=network, source=source, is_random=True)]


def _judge(trials: Trials, training: Training, steps: int, end: float) -> Result | None:
    return trials.judge(training.make(steps), training.space, end - time.monotonic())


def _list_trainings(spaces: list[Space], side: int, source: LabeledSource) -> list[Training]:
    """List the trainings from some starts, those from the best one first.

    Args:
        spaces: Spaces of the starts.
        side: Side of the images, where larger ones take too long; 0 for that of each space.
        source: Source as the user gave it.

    Raises:
        InputError: The images are too small for a network.
    """
    sized = [_shrink(space, side, source) for space in spaces]
    return [Training(space, kind) for space in sized for kind in range(2 if source.pool_size else 1)]


def _shrink(space: Space, side: int, source: LabeledSource) -> Space:
    if not side or space.shrinks is None or space.backbone is None or space.backbone.input_spec.shape[-1] <= side:
        return space
    smaller = replace(space.shrinks, image_size=side)
    with silence_logs():
        backbone, _ = load_candidate(smaller, source.data.input_spec)
    if backbone.misfits:
        raise InputError(f"{smaller} lacks weights of the shape of {backbone.misfits[0]}: choose a larger size")
    return replace(space, name=str(smaller), backbone=backbone, source=source.view(backbone.input_spec))


def _decide(trials: Trials, spaces: list[Space]) -> Stage:
    """Decide how many trainings of how many steps fit into the time that is left, with smaller images if they must."""
    own = max(space.backbone.input_spec.shape[-1] for space in spaces if space.backbone is not None)
    smaller = [side for side in sorted(SIZES, reverse=True) if side < own and any(one.shrinks for one in spaces)]
    stage = _decide_at(trials, spaces, 0)
    for side in smaller:
        if not stage.dropped:
            break
        with suppress(InputError):  # too small for a network
            stage = _decide_at(trials, spaces, side)
    return stage


def _decide_at(trials: Trials, spaces: list[Space], side: int) -> Stage:
    trainings = _list_trainings(spaces, side, trials.source)
    plan, folds, final = trials.plan, trials.source.num_folds, 2 if trials.source.has_test else 1
    seconds = {one.space.name: 0.0 for one in trainings}
    for one in trainings:
        assert one.space.backbone is not None
        fill = estimate_fill(trials.source, longest=2.0)
        seconds[one.space.name] = seconds[one.space.name] or fill * measure_seconds(one.space.backbone, learns=True)
    costs = []
    per_space = len(trainings) // len(spaces)
    for i, one in enumerate(trainings):
        recipe = one.make(TRAINING_STEPS[0])
        step = recipe.batch * STEP_OVERHEAD * seconds[one.space.name]
        # Seconds of the targets of a graph, at most.
        graph = trials.graph_seconds.get(spaces[i // per_space].name, 0.0) if one.kind else 0.0
        costs.append(Cost(trials.busyness * START_SECONDS + graph, step))
    decoding = trials.count * trials.read_seconds  # once
    predicted = trials.source.pool_size + len(trials.source.data.splits["test"])
    predicting = predicted * max(seconds.values()) / _WITH_GRADIENT
    count, steps = plan_halving(plan.count_left(TRAININGS_END) - decoding - predicting, costs, folds, final)
    if not count:
        needed = predict_halving(costs[:1], TRAINING_STEPS[0], folds, final) + decoding + predicting
        best, minutes = trainings[0].space.name, plan.count_minutes(needed + plan.elapsed, TRAININGS_END)
        return Stage(NAME, dropped=f"fine-tuning from {best}: it takes --minutes {minutes}")
    at = f" at {side} {trials.source.modality.solve.unit}" if side else ""
    what = f"{count} training(s){at} of up to {steps} steps in {folds} folds, and on all labels"
    training = predict_halving(costs[:count], steps, folds, final)
    last = training - predict_halving(costs[:count], steps, folds, 0) + predicting
    settings = {"count": count, "steps": steps, "final": round(last), "image_size": side}
    return Stage(NAME, what, training + decoding + predicting, settings)
