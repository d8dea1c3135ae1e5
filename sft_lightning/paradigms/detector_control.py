"""How a detector is guarded against harm: a control that learns from annotated examples alone, and its judge."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sft_lightning.detection.base import Detections
from sft_lightning.detection.bootstrap import MatchRecords, compare_maps, match_batches, measure_map
from sft_lightning.detection.metrics import DetectionMetrics
from sft_lightning.paradigms.control import Control
from sft_lightning.training.judges import Change, Judge, Results
from sft_lightning.utils.inputs import Inputs


class DetectorControl(Control):
    """Copy of a detector that learns from the annotated examples alone."""

    def __init__(self, network: nn.Module, side: int, ema_decay: float) -> None:
        """Copy the network as it is.

        Args:
            network: Module with the submodules `backbone` and `head`, a detector.
            side: Side of the inputs in pixels.
            ema_decay: Decay of the average; 0 for none.
        """
        super().__init__(network, ema_decay)
        self._side, self._metrics = side, DetectionMetrics()

    def compute_losses(self, x: Inputs, y: Tensor) -> dict[str, Tensor]:
        """Compute the parts of the loss, scalars by name, and leave the global random numbers as they were.

        Args:
            x: Inputs, (B, C, S, S).
            y: Targets, (B, M, 6), as in `sft_lightning.data.vision.boxes`.
        """
        backbone, head = self._get_parts(self)
        with self.isolate_rng():
            losses: dict[str, Tensor] = head.compute_losses(backbone.forward_maps(x), self._side, y)
        return losses

    def forward(self, x: Inputs) -> Detections:
        """Find objects by the network that is evaluated: the average, if any.

        Args:
            x: Inputs, (B, C, S, S).
        """
        backbone, head = self._get_parts(self if self.average is None else self.average)
        found: Detections = head.detect(backbone.forward_maps(x), self._side)
        return found

    def reset(self) -> None:
        """Drop the detections of an earlier validation."""
        self._metrics.reset()

    def validate(self, x: Inputs, y: Tensor, positions: Tensor) -> None:
        """Add a validation batch to the metrics.

        Args:
            x: Inputs, (B, C, S, S).
            y: Targets, (B, M, 6).
            positions: Positions of the examples in the split, (B,).
        """
        self._metrics.update(self(x), y, positions)

    def compute_map(self, device: torch.device) -> Tensor:
        """Return the mean average precision over all batches and processes, and reset it.

        Args:
            device: Device through which processes exchange detections.
        """
        return self._metrics.compute(device)["map"].to(device)

    def _get_parts(self, network: nn.Module) -> tuple[Any, Any]:
        return network.get_submodule("backbone"), network.get_submodule("head")


class DetectionJudge(Judge):
    """Judge by the mean average precision, which is compared by drawing the examples again, the same for both."""

    title = "mean average precision"
    most: ClassVar[int] = 5_000  # COCO's validation split
    remedy: ClassVar[str] = ": hold some out, or compare methods in a study with a test split"

    def collect(self, network: Any, batches: Iterable[tuple[Inputs, Tensor]]) -> Results:
        """Return the matches of the detections."""
        records = match_batches((network(x), y) for x, y in batches)
        return {name: torch.from_numpy(part) for name, part in records._asdict().items()}

    def count(self, results: Results) -> int:
        """Return the number of examples."""
        return len(results["objects"])

    def measure(self, results: Results) -> float:
        """Return the mean average precision."""
        return measure_map(_read_records(results))

    def compare(self, before: Results, after: Results) -> Change | None:
        """Compare the average precision on the same draws of the examples."""
        if not torch.equal(before["objects"], after["objects"].to(before["objects"])):
            return None
        # Of the earlier network minus the later one, so that a small p-value says that precision has fallen.
        lead = compare_maps(_read_records(before), _read_records(after))
        return Change(lead.p_value, f"95% interval of the change {-lead.high:+.3f} to {-lead.low:+.3f}")


def _read_records(results: Results) -> MatchRecords:
    return MatchRecords(**{name: results[name].numpy() for name in MatchRecords._fields})
