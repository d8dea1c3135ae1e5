"""Semi-supervised fine-tuning: argmin L_s(theta) + lambda L_u(theta), L_s on few labels, L_u on many other examples."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from sft_lightning.data.contract import few_label_data
from sft_lightning.data.modality import mix_inputs
from sft_lightning.losses.unlabeled.base import Outputs, Strategy, StrategyContext, StrategyInputs, StrategyOutput
from sft_lightning.losses.unlabeled.pool_targets import PoolTargets
from sft_lightning.paradigms.base import StepResult
from sft_lightning.paradigms.batch_schedule import BatchSchedule, Ramp, ramp
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.training.ema import EMA
from sft_lightning.training.optimizers import Group, list_accumulation
from sft_lightning.utils.errors import InputError, check_decay, check_min
from sft_lightning.utils.inputs import Inputs, concatenate_inputs, count_inputs
from sft_lightning.utils.lightning_patches import find_unused_parameters


class PseudoLabels(NamedTuple):
    """Pseudo-labels of the last unsupervised step, for callbacks such as `PseudoLabelHealth`.

    Attributes:
        indices: Positions in the unlabeled split, (B,).
        classes: Pseudo-labels, (B,).
        weight: Weights in [0, 1], (B,), or None where every example counts.
    """

    indices: Tensor
    classes: Tensor
    weight: Tensor | None


class SemiSupervisedModule(FineTuneClassifier):
    """A classifier that also learns from unlabeled examples; accepts all settings of `FineTuneClassifier`.

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
        """Build network and strategy.

        Args:
            strategy: L_u, one of `sft_lightning.losses.unlabeled` or a class of your own.
            schedule: Schedule of the steps, `joint` or `alternating`.
            warmup_steps: Supervised optimizer steps before anything else.
            supervised_steps: Supervised steps of each turn, k_s.
            unsupervised_steps: Unsupervised steps of each turn, k_u.
            lambda_u: Weight of L_u. Where there are fewer unlabeled examples than a labeled batch has, it is scaled
                down so that each counts as much as a labeled one.
            lambda_ramp: Shape of lambda's rise after the warm-up.
            ramp_steps: Length of the rise in optimizer steps.
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
        if self.task.name not in strategy.tasks:
            raise InputError(
                f"strategy {type(strategy).__name__} supports {', '.join(strategy.tasks)}, and the task is "
                f"{self.task.name}: choose another strategy"
            )
        self.strategy, self.schedule = strategy, schedule
        strategy.build(StrategyContext(self.num_classes, self.backbone.num_features, self.backbone))
        self.warmup_steps, self.supervised_steps = warmup_steps, supervised_steps
        self.unsupervised_steps = unsupervised_steps
        self.lambda_u, self.lambda_ramp, self.ramp_steps = lambda_u, lambda_ramp, ramp_steps
        self.average = EMA({"backbone": self.backbone, "head": self.head}, ema_decay) if ema_decay else None
        self._mix: Callable[[Inputs, Tensor, Tensor], Inputs] = mix_inputs
        self._pool_share = 1.0
        self._followed = 0
        self._followed_there: int | None = None
        self.pseudo_labels: PseudoLabels | None = None
        self.supervised_loss: Tensor | None = None  # L_s of the last step, for callbacks

    # --- interface for the data module

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

    # --- interface for the strategy

    def outputs(self, x: Inputs) -> Outputs:
        """Compute features and logits.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        features = self.backbone(x)
        return Outputs(features, self.head(features))

    def teacher_logits(self, x: Inputs) -> Tensor:
        """Compute logits with the averaged weights, without gradient.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        assert self.average is not None
        logits: Tensor = self.average(x)
        return logits

    def teacher_outputs(self, x: Inputs) -> Outputs:
        """Compute features and logits with the averaged weights, without gradient.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        assert self.average is not None
        return Outputs(*self.average.outputs(x))

    def features(self, x: Inputs) -> Tensor:
        """Compute features, in evaluation with the averaged weights.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        if self.training or self.average is None:
            return super().features(x)
        averaged: Tensor = self.average.get_submodule("backbone")(x)
        return averaged

    def forward(self, x: Inputs) -> Tensor:
        """Compute logits, in evaluation with the averaged weights.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        return super().forward(x) if self.training or self.average is None else self.teacher_logits(x)

    def evaluated(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Return features and logits of the averaged weights, if there are any.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        return super().evaluated(x) if self.average is None else self.average.outputs(x)

    # --- steps

    def setup(self, stage: str) -> None:
        """Let DDP handle steps that leave parameters out: their gradients stay None, as in a single process.

        Args:
            stage: Name of the stage: `fit`, `validate`, `test` or `predict`.
        """
        if self.schedule == "alternating" or self.warmup_steps > 0:
            find_unused_parameters(self.trainer.strategy)

    def on_fit_start(self) -> None:
        """Tell the strategy how many examples there are, and weigh unlabeled ones of a pool smaller than a batch."""
        if self.strategy.computes_supervised_loss:
            self.refuse_loss_settings(f"strategy {type(self.strategy).__name__} computes the loss on labels itself")
        super().on_fit_start()
        if self.average is not None and self.head_start != "random" and self.trainer.ckpt_path is None:
            self.average.get_submodule("head").load_state_dict(self.head.state_dict())
        data = few_label_data(self.trainer)
        pool = 0 if data is None else len(data.splits["unlabeled"])
        self.strategy.start_labeled(0 if data is None else len(data.splits["labeled"]))
        self.strategy.start(pool)
        self._mix = mix_inputs if data is None else data.views.mix
        labels = (1 if data is None else data.batch_size) * self.trainer.world_size
        self._pool_share = min(1.0, pool / labels) if pool else 1.0

    def on_train_start(self) -> None:
        """Start the average, and catch up on a step that a checkpoint inside an epoch had not averaged yet."""
        super().on_train_start()
        if self.average is not None and self._followed_there is not None:
            if self._followed_there < self.trainer.global_step:
                self._update_average(self.average)
            self._followed_there = None
        self._followed = self.trainer.global_step

    def on_train_epoch_start(self) -> None:
        """Let the strategy prepare for the epoch."""
        super().on_train_epoch_start()
        data = few_label_data(self.trainer)
        if data is not None:
            self.strategy.begin_epoch(self, data, self.current_epoch)
        elif isinstance(self.strategy, PoolTargets):
            raise InputError(
                f"strategy {type(self.strategy).__name__} computes targets of all unlabeled examples, which plain "
                "loaders do not give: use a data module of this package"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the last averaged step: callbacks that save after a step run before the average is updated."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["average_followed"] = self._followed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the last averaged step."""
        super().on_load_checkpoint(checkpoint)
        self._followed_there = checkpoint.get("average_followed")

    def groups(self) -> list[Group]:
        """Return the groups of the classifier and that of the strategy."""
        return [*super().groups(), Group("strategy", list(self.strategy.parameters()), 1.0)]

    def step(self, batch: Any) -> StepResult:
        """Compute L_s, lambda L_u or their sum, by the schedule and the parts of the batch."""
        labeled, unlabeled = batch.get("labeled"), batch.get("unlabeled")
        if unlabeled is None:
            with self.watched():
                outputs = self.outputs(labeled.x)
            return self._combine(self._supervised(labeled.y, outputs.logits), None)
        with self.watched():
            student, known = self._forward(labeled, unlabeled)
        # Outputs are None unless the strategy asks for them: one that reads them anyway fails in its first step.
        result = self.strategy.loss(
            StrategyInputs(self, unlabeled, cast(Outputs, student), labeled, cast(Outputs, known), self._mix)
        )
        if result.pseudo_labels is not None:
            self.pseudo_labels = PseudoLabels(unlabeled.indices, result.pseudo_labels, result.weight)
        supervised = result.supervised  # only MixMatch sets it, which mixes labeled examples in either schedule
        if supervised is None and self.schedule == "joint":
            logits = cast(Outputs, known).logits if result.labeled_logits is None else result.labeled_logits
            supervised = self._supervised(labeled.y, logits)
        return self._combine(supervised, result)

    def _forward(self, labeled: Any, unlabeled: Any) -> tuple[Outputs | None, Outputs | None]:
        """Compute the student's view and the labeled examples, both of which need gradients, in one pass."""
        view = None if self.strategy.student is None else getattr(unlabeled, self.strategy.student)
        if labeled is None or self.strategy.computes_supervised_loss:
            return (None if view is None else self.outputs(view)), None
        if view is None:
            return None, self.outputs(labeled.x)
        both = self.outputs(concatenate_inputs([labeled.x, view]))
        count = count_inputs(labeled.x)
        return Outputs(both.features[count:], both.logits[count:]), Outputs(both.features[:count], both.logits[:count])

    def _combine(self, supervised: Tensor | None, result: StrategyOutput | None) -> StepResult:
        share = self._lambda_now()
        parts = [] if supervised is None else [supervised]
        self.supervised_loss = None if supervised is None else supervised.detach()
        logs = {} if supervised is None else {"supervised": supervised}
        if result is not None:
            parts.append(share * result.loss)
            logs.update({"unsupervised": result.loss, **result.logs})
        return StepResult(torch.stack(parts).sum(), logs)

    def _lambda_now(self) -> float:
        # L_u is a mean over the batch: a single unlabeled example would weigh as much as all labeled ones together, and
        # would pull the network to its pseudo-label faster than the running statistics of batch normalization follow.
        scale = self.lambda_u * self._pool_share
        return scale * ramp(self.lambda_ramp, max(0, self.global_step - self.warmup_steps), self.ramp_steps)

    def derived(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the ratio lambda L_u / L_s: near 0, L_u has no effect; far above 1, it outweighs the labels.

        Args:
            means: Mean of each logged scalar since the last log entry.
        """
        if "supervised" not in means or "unsupervised" not in means:
            return {}
        return {"ratio": self._lambda_now() * means["unsupervised"] / means["supervised"].clamp_min(1e-8)}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average after each optimizer step."""
        if self.average is not None and self.trainer.global_step > self._followed:
            self._update_average(self.average)
            self._followed = self.trainer.global_step
        super().on_train_batch_end(outputs, batch, batch_idx)

    def _update_average(self, average: EMA) -> None:
        self.strategy.update_average(average.update(self))
