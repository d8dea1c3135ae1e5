"""Average precision of detected objects, as COCO defines it (Lin et al. 2014), over the examples of all processes."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_lightning.data.vision.boxes import find_annotated
from sft_lightning.detection.base import Detections
from sft_lightning.utils.distributed import all_gather_cat
from sft_lightning.utils.errors import InputError

AP = "ap_"  # beginning of the names of metrics by class
_NAMES = {"map": "map", "map_50": "map50", "map_75": "map75", "mar_100": "recall"}
MOST = 100  # detections of an example that count
IOUS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)  # at which precision is measured


class DetectionMetrics:
    """Mean average precision over IoU 0.5 to 0.95, at 0.5 and 0.75, mean recall of 100 detections, and AP by class.

    Rows are kept on the CPU, and those of all processes are joined before anything is computed, so that any number of
    them gives the same. A class without an object has no value, and counts for no mean.
    """

    def __init__(self) -> None:
        """Start without rows."""
        self.reset()

    def reset(self) -> None:
        """Drop all rows."""
        self._examples: list[Tensor] = []  # positions, (B,)
        self._found: list[Tensor] = []  # position, class, score and corners, (N, 7)
        self._true: list[Tensor] = []  # position, class, whether ignored and corners, (N, 7)

    def update(self, found: Detections, y: Tensor, positions: Tensor) -> None:
        """Add a batch; examples whose objects are unknown are left out.

        Args:
            found: Detections.
            y: Targets, (B, M, 6), as in `sft_lightning.data.vision.boxes`.
            positions: Positions of the examples in the split, (B,).
        """
        y, (boxes, scores, classes) = y.double().cpu(), (t.detach().double().cpu() for t in found)
        places = positions.double().cpu()[:, None]
        is_known = find_annotated(y)
        rows = torch.cat([torch.stack([places.expand_as(scores), classes, scores], 2), boxes], 2)
        self._found.append(rows[(classes >= 0) & is_known[:, None]])
        rows = torch.cat([torch.stack([places.expand_as(y[..., 0]), y[..., 0], y[..., 5]], 2), y[..., 1:5]], 2)
        self._true.append(rows[(y[..., 0] >= 0) & is_known[:, None]])
        self._examples.append(places[is_known, 0])

    def compute(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return the metrics by name, float32, on the CPU, and reset; those of class k are named `ap_k`.

        Args:
            device: Device through which processes exchange rows; None for the CPU.

        Raises:
            InputError: The extra `detection` is not installed.
        """
        empty = torch.zeros(0, 7, dtype=torch.float64)
        parts = [torch.cat([empty[:, 0], *self._examples])]
        parts += [torch.cat([empty, *rows]) for rows in (self._found, self._true)]
        examples, found, true = (all_gather_cat(part.to(device)).cpu() for part in parts)
        self.reset()
        return measure(examples, found, true)


def measure(examples: Tensor, found: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Return the metrics of rows.

    Args:
        examples: Positions of the examples, (B,).
        found: Position, class, score and corners of each detection, (N, 7).
        true: Position, class, whether evaluation ignores it, and corners of each object, (N, 7).

    Raises:
        InputError: The extra `detection` is not installed.
    """
    check_extra()
    from torchmetrics.detection import MeanAveragePrecision

    # torchmetrics takes its own from float32, so that a recall of 4 / 5 would lie below 0.8, unlike COCO's.
    thresholds = {"iou_thresholds": IOUS.tolist(), "rec_thresholds": RECALLS.tolist()}
    metric: Any = MeanAveragePrecision(
        class_metrics=True, backend="faster_coco_eval", sync_on_compute=False, **thresholds
    )
    metric.warn_on_many_detections = False
    order = examples.unique()  # sorted: the order decides between equal scores
    for place in order.tolist():
        own, real = found[found[:, 0] == place], true[true[:, 0] == place]
        metric.update(
            [{"boxes": own[:, 3:], "scores": own[:, 2], "labels": own[:, 1].long()}],
            [{"boxes": real[:, 3:], "labels": real[:, 1].long(), "iscrowd": real[:, 2].long()}],
        )
    if not len(true):
        return {name: torch.tensor(0.0) for name in _NAMES.values()}
    values: Mapping[str, Tensor] = metric.compute()
    named = {name: values[theirs].clamp_min(0.0) for theirs, name in _NAMES.items()}
    pairs = zip(values["classes"].flatten().tolist(), values["map_per_class"].flatten(), strict=True)
    named |= {f"{AP}{k}": value for k, value in pairs if float(value) >= 0}
    return {name: value.to(torch.float32) for name, value in named.items()}


def check_extra() -> None:
    """Check that what computes the metrics is installed.

    Raises:
        InputError: The extra `detection` is not installed.
    """
    if find_spec("faster_coco_eval") is None:
        raise InputError(
            "the average precision of detected objects needs faster-coco-eval: pip install 'sft-lightning[detection]'"
        )
