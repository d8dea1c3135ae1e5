"""Unbiased Teacher (Liu et al. 2021, "Unbiased Teacher for Semi-Supervised Object Detection").

The teacher is the average of the student. It finds objects in weak views; those of high scores are what the student
learns in strong views of the same geometry. As in the paper, pseudo-boxes teach classes alone, since scores say nothing
about how exact corners are, and the student learns from labels alone at first (`burn_in_steps`).

The paper's fixed threshold suits the scores of one detector after one length of training; where the teacher is below
it, unlabeled examples teach that nothing is there. So by default the threshold of each class follows from how many
objects annotated examples show (`sft_lightning/detection/label_match.py`).
"""

from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.detection.base import DetectionHead, Detections, make_targets
from sft_lightning.detection.label_match import LabelMatch
from sft_lightning.paradigms.base import StepResult
from sft_lightning.paradigms.batch_schedule import BatchSchedule, find_accumulation
from sft_lightning.paradigms.controlled import ControlledModel
from sft_lightning.paradigms.detector_control import DetectionJudge, DetectorControl
from sft_lightning.paradigms.fine_tune_detector import FineTuneDetector
from sft_lightning.training.ema import EMA
from sft_lightning.training.judges import Judge
from sft_lightning.training.optimizers import Group, count_known_steps
from sft_lightning.utils.errors import InputError, check_decay, check_fraction, check_min
from sft_lightning.utils.inputs import concatenate_inputs, count_inputs

_SHARE, _MOST = 0.2, 2000  # of all steps, and in steps: the paper's burn-in on COCO


class SemiSupervisedDetector(ControlledModel, FineTuneDetector):
    """A detector that also learns from unlabeled examples; accepts all settings of `FineTuneDetector`.

    Attributes:
        average: Averaged network, which teaches and is evaluated.
        label_match: Thresholds of the classes; None where one was given.
        burn_in_steps: Optimizer steps on labels alone.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")
    unlabeled_views: tuple[str, ...] = ("weak", "strong")
    average: EMA
    label_match: LabelMatch | None
    control: DetectorControl | None

    def __init__(
        self,
        threshold: float | None = None,
        lambda_u: float = 1.0,
        burn_in_steps: int | None = None,
        ema_decay: float = 0.9996,
        learn_pseudo_corners: bool = False,
        control: bool = False,
        **detector: Any,
    ) -> None:
        """Build the network and its average.

        Args:
            threshold: Smallest score of a box of the teacher that the student learns; null for one of each class, from
                which unlabeled examples get as many boxes of it, on average, as annotated ones have (Chen et al. 2022).
                The paper's is 0.7; `retinanet` and `fcos` rarely reach it.
            lambda_u: Weight of the losses on pseudo-boxes; 4 in the paper.
            burn_in_steps: Optimizer steps on labels alone before the teacher teaches; null for a fifth of the run, at
                most 2,000.
            ema_decay: Decay of the averaged weights.
            learn_pseudo_corners: Whether pseudo-boxes also teach where corners are, not their classes alone.
            control: Whether to train a second copy of the network beside it on the annotated examples alone. At the
                end, `RollBack` (part of the command line) keeps the copy if its mean average precision on validation
                examples is better.
            detector: All settings of `FineTuneDetector`, by name.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(**detector)
        check_fraction(threshold=threshold or 0.0)
        check_min(0, lambda_u=lambda_u, burn_in_steps=burn_in_steps or 0)
        check_decay(ema_decay=ema_decay)
        if not ema_decay:
            raise InputError("ema_decay is 0, and the teacher is the averaged network: give 0.999 or so")
        self.threshold, self.lambda_u = threshold, lambda_u
        self.learn_pseudo_corners = learn_pseudo_corners
        self._given_burn_in = burn_in_steps
        self.burn_in_steps = burn_in_steps or 0  # `setup` chooses what is left open
        self._wants_control = control
        self.control = None
        self.label_match = LabelMatch(self.num_classes) if threshold is None else None
        self.average = EMA({"backbone": self.backbone, "head": self.head}, ema_decay)

    # --- schedule

    def setup(self, stage: str) -> None:
        """Choose the length of the burn-in that is left open, and build the control.

        Raises:
            InputError: The run ends before the burn-in does, or the teacher gives no score as low as the threshold.
        """
        super().setup(stage)
        if stage != "fit":
            return
        least, counted = self.hparams["score_threshold"], self.threshold
        if least is not None and counted is not None and least > counted:
            raise InputError(
                f"score_threshold is {least}, and the teacher's boxes count from threshold {counted} on: set "
                "threshold higher, or leave score_threshold out in training"
            )
        steps = count_known_steps(self.trainer)
        if self._given_burn_in is None:
            self._set_burn_in(min(_MOST, int(_SHARE * steps)) if steps else _MOST)
            rank_zero_info(f"Schedule: burn_in_steps is {self.burn_in_steps}; a value of your own replaces it.")
        elif steps and self.burn_in_steps >= steps:
            raise InputError(
                f"burn_in_steps is {self.burn_in_steps}, and training ends after {steps} steps, so that nothing would "
                "be learned from unlabeled examples: set a smaller one, or leave it out"
            )
        self.start_control()

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps on labels alone, under the name that callbacks know."""
        return self.burn_in_steps

    @property
    def judge(self) -> Judge:
        """Judge by the mean average precision of validation examples."""
        return DetectionJudge()

    def copy_network(self, ema_decay: float) -> DetectorControl:
        """Copy the network as it is."""
        return DetectorControl(self, self._side, ema_decay)

    def groups(self) -> list[Group]:
        """Return the groups of the detector, and those of the control."""
        own = super().groups()
        return [*own, *self.control_groups(own)]

    def _set_burn_in(self, steps: int) -> None:
        self.burn_in_steps = self.hparams["burn_in_steps"] = steps  # a resumed run takes it from there

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the length of the burn-in that was chosen."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._set_burn_in(checkpoint.get("hyper_parameters", {}).get("burn_in_steps") or 0)

    def make_schedule(self, epoch_steps: int) -> BatchSchedule | None:
        """Return that batches hold labels alone until the burn-in ends; None without one.

        Args:
            epoch_steps: Number of training batches of an epoch.

        Raises:
            InputError: Gradients are accumulated in a way that the burn-in does not divide.
        """
        if not self.burn_in_steps:
            return None
        accumulation = find_accumulation(self.trainer, epoch_steps)
        if accumulation.problem and self.burn_in_steps > accumulation.countable:
            raise InputError(accumulation.problem)
        return BatchSchedule(self.burn_in_steps, 0, 1, needs_labels=True, accumulate=accumulation.batches)

    # --- steps

    def evaluated_network(self) -> tuple[Any, DetectionHead]:
        """Return the averaged backbone and head."""
        head = self.average.get_submodule("head")
        assert isinstance(head, DetectionHead)
        return self.average.get_submodule("backbone"), head

    def step(self, batch: Any) -> StepResult:
        """Compute the losses on labels, and on the boxes that the teacher finds, and those of the control on labels."""
        result = self._step(batch)
        if self.control is None:
            return result
        losses = self.control.compute_losses(batch["labeled"].x, batch["labeled"].y)
        loss = torch.stack([*losses.values()]).sum()
        return result._replace(control=loss, logs={**result.logs, "control_loss": loss})

    def _step(self, batch: Any) -> StepResult:
        labeled, unlabeled = batch["labeled"], batch.get("unlabeled")
        if self.label_match is not None:
            self.label_match.count_objects(labeled.y)
        if unlabeled is None:
            return super().step(batch)
        pseudo, confidence = self.find_pseudo_boxes(unlabeled.weak)
        with self.watched():  # one pass, so that batch statistics are those of both
            maps = self.backbone.forward_maps(concatenate_inputs([labeled.x, unlabeled.strong]))
        count = count_inputs(labeled.x)
        supervised = self.head.compute_losses([x[:count] for x in maps], self._side, labeled.y)
        taught = self.head.compute_losses([x[count:] for x in maps], self._side, pseudo)
        left_out = () if self.learn_pseudo_corners else self.head.box_losses
        unsupervised = torch.stack([loss for name, loss in taught.items() if name not in left_out]).sum()
        unused = torch.stack([loss for name, loss in taught.items() if name in left_out] or [unsupervised]).sum()
        # Times 0: every parameter has a gradient, as DDP expects, whatever is learned.
        loss = torch.stack([*supervised.values()]).sum() + self.lambda_u * unsupervised + 0.0 * unused
        logs = {name: one.detach() for name, one in supervised.items()}
        boxes = (pseudo[..., 0] >= 0).sum()
        logs |= {"unsupervised": unsupervised.detach(), "pseudo_boxes": boxes / len(pseudo)}
        return StepResult(loss, {**logs, "pseudo_confidence": confidence})

    @torch.no_grad()
    def find_pseudo_boxes(self, x: Any) -> tuple[Tensor, Tensor]:
        """Find the boxes of the teacher that the student learns.

        Args:
            x: Weak views, (B, C, S, S).

        Returns:
            Targets, (B, M, 6), and the mean score of their boxes, 0 without any.
        """
        found = self(x)
        sides = found.boxes[..., 2:] - found.boxes[..., :2]
        is_sure = self._is_likely(found) & (found.classes >= 0) & (sides >= 1).all(2)
        confidence = (found.scores * is_sure).sum() / is_sure.sum().clamp_min(1)
        return make_targets(found, is_sure), confidence

    def _is_likely(self, found: Detections) -> Tensor:
        """Return whether the score of each detection reaches the threshold, boolean, (B, K)."""
        if self.threshold is not None:
            return found.scores >= self.threshold
        assert self.label_match is not None
        self.label_match.count_scores(found)
        return found.scores >= self.label_match.find_thresholds()[found.classes.clamp_min(0)]

    # --- evaluation

    def on_validation_start(self) -> None:
        """Compare the classes, and start without detections."""
        super().on_validation_start()
        if self.control is not None:
            self.control.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation metrics, and to those of the control."""
        super().validation_step(batch, batch_idx)
        if self.control is not None:
            self.control.validate(batch.x, batch.y, batch.indices)

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics of the detector, and the control's mean average precision in validation."""
        values = super().evaluate(stage)
        if stage == "val" and self.control is not None:
            values["control_map"] = self.control.compute_map(self.device)
        return values
