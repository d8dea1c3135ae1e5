"""Recipes for examples with boxes: detectors that learn from labels alone, and Unbiased Teacher."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.detection.build import build_detector
from sft_lightning.detection.metrics import MOST
from sft_lightning.networks.modes import eval_mode
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.map_starts import MapStart
from sft_lightning.solver.plan import STEP_OVERHEAD
from sft_lightning.solver.recipes import Recipe
from sft_lightning.transfer.vectors import choose_device
from sft_lightning.utils.inputs import count_inputs

DETECTORS = ("ssdlite", "fcos")  # the quickest one first
BATCH, _RATIO = 8, 1  # examples with boxes of a step, and unlabeled ones for each of them
FIELDS = 6  # class, corners and score
_MEASURED = 4  # examples of a measurement
_RATES = {"ssdlite": 0.002, "fcos": 0.001}  # learning rates from random weights, half of them from a start
_WARMUP = 5  # a fifth of all steps; without a warm-up, some detectors from random weights find nothing for long
_VIEW = ("--data.weak_view.flip=true", "--data.weak_view.crop_scale=[0.5,1.0]")
# Half of the steps on labels alone, since the teacher of so short a run finds little before.
_TEACHER = ("--model=SemiSupervisedDetector", "--model.ema_decay=0.99", f"--data.unlabeled_ratio={_RATIO}")


def make_detector(start: MapStart, detector: str, steps: int) -> Recipe:
    """Return the training of a detector on labels alone.

    Args:
        start: Start.
        detector: Kind of detector.
        steps: Number of optimizer steps.
    """
    name = f"{detector} from {start.name} ({steps} steps)"
    argv = ("--model=FineTuneDetector", *_list_options(start, detector, steps))
    return Recipe(name, start.saw_pool, argv, steps, BATCH)


def make_teacher(start: MapStart, detector: str, steps: int) -> Recipe:
    """Return the training of a detector that also learns from unlabeled examples: Unbiased Teacher (Liu et al. 2021).

    Args:
        start: Start.
        detector: Kind of detector.
        steps: Number of optimizer steps.
    """
    name = f"Unbiased Teacher with {detector} from {start.name} ({steps} steps)"
    argv = (*_TEACHER, f"--model.burn_in_steps={steps // 2}", *_list_options(start, detector, steps))
    return Recipe(name, True, argv, steps, BATCH * (1 + _RATIO))


def _list_options(start: MapStart, detector: str, steps: int) -> tuple[str, ...]:
    rate = _RATES[detector] * (1 if start.candidate is None else 0.5)
    options = (*start.argv, f"--model.detector={detector}", f"--model.optimizer.lr={rate}")
    schedule = ("--model.lr_scheduler=WarmupCosine", f"--model.lr_scheduler.warmup_steps={steps // _WARMUP}")
    options = ("--model.optimizer=torch.optim.AdamW", *schedule, *options, *_VIEW)
    options += (f"--data.batch_size={BATCH}", f"--data.steps_per_epoch={steps}", "--trainer.max_epochs=1")
    return (*options, "--model.layer_decay=0.8") if start.is_large else options


@dataclass(frozen=True)
class Speed:
    """Measured seconds of a detector for one example.

    Attributes:
        finds: Seconds to find objects.
        learns: Seconds of a pass with its losses and gradients.
    """

    finds: float
    learns: float

    def of_step(self, learns_unlabeled: bool) -> float:
        """Return the seconds of an optimizer step, without those of reading.

        Args:
            learns_unlabeled: Whether unlabeled examples are learned from, too, for half of the steps.
        """
        more = _RATIO * (self.finds + self.learns) / 2 if learns_unlabeled else 0.0
        return STEP_OVERHEAD * BATCH * (self.learns + more)


def measure_detector(start: MapStart, detector: str, source: LabeledSource) -> Speed:
    """Measure how long a detector takes, the faster of two passes.

    Args:
        start: Start.
        detector: Kind of detector.
        source: Source at the size at which examples are seen.
    """
    device = choose_device()
    with silence_logs():
        network = start.load(source)
        head = build_detector(detector, network, source.data.num_classes).to(device)
    network.to(device)
    side, x = network.input_spec.shape[-1], network.make_batch(_MEASURED)
    y = torch.tensor([0.0, side / 4, side / 4, side / 2, side / 2, 0.0], device=device).expand(_MEASURED, 2, FIELDS)
    finds, learns = [], []
    with eval_mode(network), eval_mode(head):
        for _ in range(2):
            begin = time.perf_counter()
            with torch.no_grad():
                head.detect(network.forward_maps(x), side).scores.sum().item()  # waits for the device
            finds.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            loss = torch.stack([*head.compute_losses(network.forward_maps(x), side, y).values()]).sum()
            loss.backward()
            loss.item()
            learns.append(time.perf_counter() - begin)
    return Speed(min(finds) / count_inputs(x), min(learns) / count_inputs(x))


@torch.no_grad()
def find_objects(model: Any, data: FewLabelDataModule, name: str) -> Tensor:
    """Return the detections of a split in its order, float32, (N, 100, 6): class, corners and score.

    Corners are in pixels of the network's inputs; rows that fill up have the class -1.

    Args:
        model: Detector.
        data: Data module after its setup.
        name: Name of the split.
    """
    model.eval()
    rows = torch.zeros(len(data.splits[name]), MOST, FIELDS)
    rows[:, :, 0] = -1
    for batch in data.batches_of(name, model.device):
        found = model(batch.x)
        kept = min(MOST, found.scores.shape[1])
        parts = (found.classes[..., None], found.boxes, found.scores[..., None])
        joined = torch.cat([part[:, :kept].float().cpu() for part in parts], 2)
        rows[batch.indices.cpu(), :kept] = joined
    return rows
