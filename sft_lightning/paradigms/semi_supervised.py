"""Semi-supervised fine-tuning: argmin L_s(theta) + lambda L_u(theta), L_s on few labels, L_u on many other examples."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from sft_lightning.data.contract import few_label_data
from sft_lightning.data.modality import mix_tensors
from sft_lightning.losses.unlabeled.base import Outputs, Strategy, StrategyContext, StrategyInputs, StrategyOutput
from sft_lightning.paradigms.base import StepResult
from sft_lightning.paradigms.batch_schedule import BatchSchedule, Ramp, ramp
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.training.ema import EMA
from sft_lightning.training.lightning_patches import find_unused_parameters
from sft_lightning.training.optimizers import Group, list_accumulation
from sft_lightning.utils.errors import InputError, check_decay, check_min


class PseudoLabels(NamedTuple):
    """What the last unsupervised step took its examples for, for those who watch (`PseudoLabelHealth`).

    Attributes:
        indices: (B,) positions in the unlabeled split.
        classes: (B,) pseudo-labels.
        weight: (B,) in [0, 1], or None where every example counts.
    """

    indices: Tensor
    classes: Tensor
    weight: Tensor | None


class SemiSupervisedModule(FineTuneClassifier):
    """A classifier that learns from unlabeled examples, too; all settings of `FineTuneClassifier` hold.

    `joint` takes L_s + lambda L_u in each step. `alternating` first takes `warmup_steps` on L_s, then turns of
    `supervised_steps` on L_s and `unsupervised_steps` on lambda L_u; a step loads only the batch that it needs. Both
    are one optimizer's automatic optimization.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")

    def __init__(
        self,
        strategy: Strategy,
        schedule: Literal["alternating", "joint"] = "joint",
        warmup_steps: int = 0,
        supervised_steps: int = 1,
        unsupervised_steps: int = 1,
        lambda_u: float = 1.0,
        lambda_ramp: Ramp = "constant",
        ramp_steps: int = 0,
        ema_decay: float = 0.999,
        **classifier: Any,
    ) -> None:
        """Builds network and strategy.

        Args:
            strategy: L_u, one of `sft_lightning.losses.unlabeled` or a class of your own.
            schedule: `joint` or `alternating`.
            warmup_steps: Supervised optimizer steps before anything else.
            supervised_steps: k_s of each turn.
            unsupervised_steps: k_u of each turn.
            lambda_u: Weight of L_u. Where there are fewer unlabeled images than a labeled batch has, it is scaled down
                so that each counts as much as a labeled one.
            lambda_ramp: How lambda rises after the warm-up.
            ramp_steps: Optimizer steps of the rise.
            ema_decay: Decay of the averaged weights that are evaluated and teach; 0 for none.
            classifier: All settings of `FineTuneClassifier`, by name.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(**classifier)
        check_min(0, lambda_u=lambda_u, warmup_steps=warmup_steps, ramp_steps=ramp_steps)
        check_min(1, supervised_steps=supervised_steps, unsupervised_steps=unsupervised_steps)
        check_decay(ema_decay=ema_decay)
        if strategy.needs_teacher and not ema_decay:
            raise InputError(f"{type(strategy).__name__} learns from the averaged network: set ema_decay, 0.999 say")
        if strategy.computes_supervised_loss and self.regularizer is not None and self.regularizer.needs_activations:
            raise InputError(
                f"regularizer {type(self.regularizer).__name__} looks at the labeled examples' pass, and "
                f"{type(strategy).__name__} mixes labeled and unlabeled ones: set L2 or L2SP"
            )
        if strategy.modalities is not None and self.backbone.modality not in strategy.modalities:
            raise InputError(
                f"strategy {type(strategy).__name__} supports {', '.join(strategy.modalities)} inputs, and backbone "
                f"{self.backbone.name!r} takes {self.backbone.modality}: choose another strategy"
            )
        self.strategy, self.schedule = strategy, schedule
        channels, height, width = self.backbone.image_shape
        strategy.build(StrategyContext(self.num_classes, self.backbone.num_features, (channels, height, width)))
        self.warmup_steps, self.supervised_steps = warmup_steps, supervised_steps
        self.unsupervised_steps = unsupervised_steps
        self.lambda_u, self.lambda_ramp, self.ramp_steps = lambda_u, lambda_ramp, ramp_steps
        self.average = EMA({"backbone": self.backbone, "head": self.head}, ema_decay) if ema_decay else None
        self._mix: Callable[[Tensor, Tensor, Tensor], Tensor] = mix_tensors
        self._pool_share = 1.0
        self._followed = 0
        self._followed_there: int | None = None
        self.pseudo_labels: PseudoLabels | None = None
        self.supervised_loss: Tensor | None = None  # L_s of the last step, for those who watch

    # --- what the data module asks

    @property
    def unlabeled_views(self) -> tuple[str, ...]:  # type: ignore[override] # the strategy decides
        """The views of unlabeled examples that the strategy uses."""
        return self.strategy.views

    def make_schedule(self, epoch_steps: int) -> BatchSchedule | None:
        """Return which parts each batch holds; None where every batch holds both.

        Args:
            epoch_steps: Number of training batches of an epoch.

        Raises:
            InputError: Gradients are accumulated in a way that warm-up and turns do not divide.
        """
        if self.schedule == "joint" and not self.warmup_steps:
            return None
        accumulate, *others = dict.fromkeys(list_accumulation(self.trainer, max(1, self.trainer.max_epochs or 1)))
        if others:
            raise InputError(
                f"GradientAccumulationScheduler changes from {accumulate} to {others[0]} batches per optimizer step, "
                "so that warm-up and turns would lose their step: set trainer.accumulate_grad_batches instead"
            )
        if epoch_steps % accumulate:
            raise InputError(
                f"an epoch has {epoch_steps} batches, which accumulate_grad_batches {accumulate} does not divide, so "
                "that warm-up and turns would lose their step: set steps_per_epoch to a multiple"
            )
        supervised = 0 if self.schedule == "joint" else self.supervised_steps
        labels = self.schedule == "joint" or self.strategy.needs_labels
        return BatchSchedule(self.warmup_steps, supervised, self.unsupervised_steps, labels, accumulate)

    # --- what a strategy asks

    def outputs(self, x: Tensor) -> Outputs:
        """Features and logits.

        Args:
            x: (B, C, H, W) in [0, 1].
        """
        features = self.backbone(x)
        return Outputs(features, self.head(features))

    def teacher_logits(self, x: Tensor) -> Tensor:
        """Logits of the averaged weights, without gradient.

        Args:
            x: (B, C, H, W) in [0, 1].
        """
        assert self.average is not None
        logits: Tensor = self.average(x)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Features, in evaluation those of the averaged weights.

        Args:
            x: (B, C, H, W) in [0, 1].
        """
        if self.training or self.average is None:
            return super().features(x)
        averaged: Tensor = self.average.get_submodule("backbone")(x)
        return averaged

    def forward(self, x: Tensor) -> Tensor:
        """Logits, in evaluation those of the averaged weights.

        Args:
            x: (B, C, H, W) in [0, 1].
        """
        return super().forward(x) if self.training or self.average is None else self.teacher_logits(x)

    def evaluated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, those of the averaged weights.

        Args:
            x: (B, C, H, W) in [0, 1].
        """
        return super().evaluated(x) if self.average is None else self.average.outputs(x)

    # --- steps

    def setup(self, stage: str) -> None:
        """Let DDP handle steps that leave parameters out: their gradients stay None, as in a single process.

        Args:
            stage: fit, validate, test or predict.
        """
        if self.schedule == "alternating" or self.warmup_steps > 0:
            find_unused_parameters(self.trainer.strategy)

    def on_fit_start(self) -> None:
        """Tell the strategy how many unlabeled examples there are, and weigh those of a pool smaller than a batch."""
        if self.strategy.computes_supervised_loss:
            self.refuse_loss_settings(f"strategy {type(self.strategy).__name__} computes the loss on labels itself")
        super().on_fit_start()
        data = few_label_data(self.trainer)
        pool = 0 if data is None else len(data.splits["unlabeled"])
        self.strategy.start(pool)
        self._mix = mix_tensors if data is None else data.views.mix
        labels = (1 if data is None else data.batch_size) * self.trainer.world_size
        self._pool_share = min(1.0, pool / labels) if pool else 1.0

    def on_train_start(self) -> None:
        """The average follows from here, and makes up for a step that a checkpoint inside an epoch was ahead of it."""
        super().on_train_start()
        if self.average is not None and self._followed_there is not None:
            if self._followed_there < self.trainer.global_step:
                self.average.update(self)
            self._followed_there = None
        self._followed = self.trainer.global_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Says which step the average has followed: callbacks that save after a step come before it follows."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["average_followed"] = self._followed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reads it."""
        super().on_load_checkpoint(checkpoint)
        self._followed_there = checkpoint.get("average_followed")

    def groups(self) -> list[Group]:
        """Those of the classifier, and what the strategy trains."""
        return [*super().groups(), Group("strategy", list(self.strategy.parameters()), 1.0)]

    def step(self, batch: Any) -> StepResult:
        """L_s, lambda L_u or their sum, by what the batch holds and the schedule says."""
        labeled, unlabeled = batch.get("labeled"), batch.get("unlabeled")
        if unlabeled is None:
            with self.watched():
                outputs = self.outputs(labeled.x)
            return self._finished(self._supervised(labeled.y, outputs.logits), None)
        with self.watched():
            student, known = self._forward(labeled, unlabeled)
        # None where the strategy did not ask for it: whoever reads it then is told so by the first step.
        result = self.strategy.loss(
            StrategyInputs(self, unlabeled, cast(Outputs, student), labeled, cast(Outputs, known), self._mix)
        )
        if result.pseudo_labels is not None:
            self.pseudo_labels = PseudoLabels(unlabeled.indices, result.pseudo_labels, result.weight)
        supervised = result.supervised  # MixMatch: what it mixes in is part of its L_u, in alternation, too
        if supervised is None and self.schedule == "joint":
            logits = cast(Outputs, known).logits if result.labeled_logits is None else result.labeled_logits
            supervised = self._supervised(labeled.y, logits)
        return self._finished(supervised, result)

    def _forward(self, labeled: Any, unlabeled: Any) -> tuple[Outputs | None, Outputs | None]:
        """One pass for all that needs gradient: the student's view and the labeled examples."""
        view = None if self.strategy.student is None else getattr(unlabeled, self.strategy.student)
        if labeled is None or self.strategy.computes_supervised_loss:
            return (None if view is None else self.outputs(view)), None
        if view is None:
            return None, self.outputs(labeled.x)
        both = self.outputs(torch.cat([labeled.x, view]))
        count = len(labeled.x)
        return Outputs(both.features[count:], both.logits[count:]), Outputs(both.features[:count], both.logits[:count])

    def _finished(self, supervised: Tensor | None, result: StrategyOutput | None) -> StepResult:
        share = self._lambda_now()
        parts = [] if supervised is None else [supervised]
        self.supervised_loss = None if supervised is None else supervised.detach()
        logs = {} if supervised is None else {"supervised": supervised}
        if result is not None:
            parts.append(share * result.loss)
            logs.update({"unsupervised": result.loss, **result.logs})
        return StepResult(torch.stack(parts).sum(), logs)

    def _lambda_now(self) -> float:
        # L_u is a mean over the batch: one unlabeled image would weigh as much as all labeled images together. It
        # then drives the network to whatever that image is taken for, faster than the running statistics of batch
        # normalization follow.
        scale = self.lambda_u * self._pool_share
        return scale * ramp(self.lambda_ramp, max(0, self.global_step - self.warmup_steps), self.ramp_steps)

    def derived(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The ratio lambda L_u / L_s: near 0, the unlabeled part says nothing; far above 1, it drowns the labels.

        Args:
            means: Mean of each logged scalar since the last log entry.
        """
        if "supervised" not in means or "unsupervised" not in means:
            return {}
        return {"ratio": self._lambda_now() * means["unsupervised"] / means["supervised"].clamp_min(1e-8)}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The average follows after each optimizer step."""
        if self.average is not None and self.trainer.global_step > self._followed:
            self.average.update(self)
            self._followed = self.trainer.global_step
        super().on_train_batch_end(outputs, batch, batch_idx)
