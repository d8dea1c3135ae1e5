"""What fits into the minutes: measured seconds of a training step, and the steps that follow from them."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sft_lightning.networks.build import build_encoder
from sft_lightning.solver.recipes import BATCH, UNLABELED_RATIO
from sft_lightning.utils.inputs import InputSpec

BACKBONE = "resnet8:flatten"
PRETRAINING_BATCH = 256
MIN_POOL = 500  # unlabeled examples below which a network learns nothing from them
MIN_PRETRAINING, MAX_PRETRAINING = 100, 4000  # optimizer steps
MIN_STEPS, MAX_STEPS = 60, 600  # optimizer steps of a training
_PRETRAINING_SHARE, _TRAINING_SHARE = 0.45, 0.4  # of the time
_OVERHEAD = 1.3  # a step with views, loss and optimizer, relative to forward and backward pass


@dataclass(frozen=True)
class Plan:
    """Steps that fit into the time.

    Attributes:
        minutes: Time that was given.
        pretraining_steps: Optimizer steps of self-supervised pre-training on the pool; 0 to leave it out.
        training_steps: Optimizer steps of each training; 0 to leave trainings out.
        dropped: Sentences about what does not fit, or cannot help.
    """

    minutes: float
    pretraining_steps: int
    training_steps: int
    dropped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "dropped": list(self.dropped)}


def measure_step(spec: InputSpec, batch: int = PRETRAINING_BATCH) -> float:
    """Measure the seconds of a forward and backward pass of the network that is trained from scratch.

    Args:
        spec: Inputs.
        batch: Number of examples.
    """
    network, _ = build_encoder(BACKBONE, spec)
    x = torch.rand(batch, *spec.shape)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        network(x).sum().backward()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def make_plan(minutes: float, pool: int, num_folds: int, num_starts: int, pass_seconds: float) -> Plan:
    """Divide the time between pre-training and trainings.

    Args:
        minutes: Time in minutes.
        pool: Number of unlabeled examples.
        num_folds: Number of folds, each of which is a training.
        num_starts: Number of published or own networks to start from.
        pass_seconds: Seconds of a forward and backward pass of 256 examples.
    """
    dropped = []
    pretraining = int(60 * minutes * _PRETRAINING_SHARE / (2 * pass_seconds * _OVERHEAD))
    if pool < MIN_POOL:
        pretraining = 0
        dropped.append(f"self-supervised pre-training: {pool} unlabeled images are too few (at least {MIN_POOL})")
    elif pretraining < MIN_PRETRAINING:
        needed = MIN_PRETRAINING * 2 * pass_seconds * _OVERHEAD / 60 / _PRETRAINING_SHARE
        pretraining = 0
        dropped.append(f"self-supervised pre-training: it takes --minutes {max(1, round(needed + 0.5))}")
    examples = BATCH * (1 + (UNLABELED_RATIO if pool else 0))
    trainings = 2 * (num_folds + 1) if pool else num_folds + 1
    step = pass_seconds * _OVERHEAD * examples / PRETRAINING_BATCH
    steps = int(60 * minutes * _TRAINING_SHARE / (trainings * step))
    if not pretraining and not num_starts:
        steps = 0
        dropped.append("fine-tuning: it needs a start (name one with --candidates)")
    elif steps < MIN_STEPS:
        needed = MIN_STEPS * trainings * step / 60 / _TRAINING_SHARE
        steps = 0
        dropped.append(f"fine-tuning with {trainings} trainings: it takes --minutes {round(needed + 0.5)}")
    return Plan(minutes, min(pretraining, MAX_PRETRAINING), min(steps, MAX_STEPS), tuple(dropped))
