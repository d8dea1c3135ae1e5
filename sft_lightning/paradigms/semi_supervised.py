"""Semi-supervised fine-tuning: argmin L_s(theta) + lambda L_u(theta), L_s on few labels, L_u on many other examples."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.data.contract import few_label_data
from sft_lightning.data.modality import MixedFeatures, mix_inputs
from sft_lightning.losses.unlabeled.base import Outputs, Strategy, StrategyContext, StrategyInputs, StrategyOutput
from sft_lightning.losses.unlabeled.pool_targets import PoolTargets
from sft_lightning.paradigms.base import StepResult
from sft_lightning.paradigms.batch_schedule import BatchSchedule, Ramp, choose_lengths, find_accumulation, ramp
from sft_lightning.paradigms.control import ClassifierControl
from sft_lightning.paradigms.controlled import ControlledModel
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.training.ema import EMA
from sft_lightning.training.judges import Judge, ScoreJudge
from sft_lightning.training.module_interfaces import PseudoLabels
from sft_lightning.training.optimizers import Group, count_known_steps
from sft_lightning.utils.errors import InputError, check_decay, check_min
from sft_lightning.utils.inputs import Inputs, concatenate_inputs, count_inputs
from sft_lightning.utils.lightning_patches import find_unused_parameters


class SemiSupervisedModule(ControlledModel, FineTuneClassifier):
    """A classifier that also learns from unlabeled examples; accepts all settings of `FineTuneClassifier`.

    `joint` takes L_s + lambda L_u in each step. `alternating` first takes `warmup_steps` on L_s, then turns of
    `supervised_steps` on L_s and `unsupervised_steps` on lambda L_u; a step loads only the batch that it needs. Both
    are one optimizer's automatic optimization.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")
    control: ClassifierControl | None

    def __init__(
        self,
        strategy: Strategy,
        schedule: Literal["alternating", "joint"] = "joint",
        warmup_steps: int | None = None,
        supervised_steps: int = 1,
        unsupervised_steps: int = 1,
        lambda_u: float = 1.0,
        lambda_ramp: Ramp = "linear",
        ramp_steps: int | None = None,
        ema_decay: float = 0.999,
        control: bool = False,
        **classifier: Any,
    ) -> None:
        """Build network and strategy.

        Args:
            strategy: L_u, one of `sft_lightning.losses.unlabeled` or a class of your own.
            schedule: Schedule of the steps, `joint` or `alternating`.
            warmup_steps: Supervised optimizer steps before anything else. By default (null) a quarter of a run of up to
                300 steps, and 0 in a longer one, with a fitted head (`head_start`), or with `alternating`.
            supervised_steps: Supervised steps of each turn, k_s.
            unsupervised_steps: Unsupervised steps of each turn, k_u.
            lambda_u: Weight of L_u. Where there are fewer unlabeled examples than a labeled batch has, it is scaled
                down so that each counts as much as a labeled one.
            lambda_ramp: Shape of lambda's rise after the warm-up.
            ramp_steps: Length of the rise in optimizer steps; 0 for none. By default (null) half of a run of up to 300
                steps, and 0 where `warmup_steps` is 0 by default.
            ema_decay: Decay of the averaged weights that are evaluated and teach; 0 for none.
            control: Whether to train a second copy of the network beside it on the labeled batches alone. At the end,
                `RollBack` (part of the command line) keeps the copy if it classifies more validation examples
                correctly.
            classifier: All settings of `FineTuneClassifier`, by name.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(**classifier)
        check_min(0, lambda_u=lambda_u, warmup_steps=warmup_steps or 0, ramp_steps=ramp_steps or 0)
        check_min(1, supervised_steps=supervised_steps, unsupervised_steps=unsupervised_steps)
        check_decay(ema_decay=ema_decay)
        if strategy.needs_teacher and not ema_decay:
            raise InputError(f"{type(strategy).__name__} learns from the averaged network: set ema_decay, 0.999 say")
        if strategy.computes_supervised_loss and self.regularizer is not None and self.regularizer.needs_activations:
            raise InputError(
                f"regularizer {type(self.regularizer).__name__} looks at the labeled examples' pass, and "
                f"{type(strategy).__name__} mixes labeled and unlabeled ones: set L2 or L2SP"
            )
        strategy.check_support(self.backbone, self.task.name)
        self.strategy, self.schedule = strategy, schedule
        strategy.build(StrategyContext(self.num_classes, self.backbone.num_features, self.backbone, self.task.name))
        self._given_lengths = warmup_steps, ramp_steps
        self.warmup_steps, self.ramp_steps = warmup_steps or 0, ramp_steps or 0  # `setup` chooses those left open
        self.supervised_steps, self.unsupervised_steps = supervised_steps, unsupervised_steps
        self.lambda_u, self.lambda_ramp = lambda_u, lambda_ramp
        self._wants_control = control
        self.control = None
        self.average = EMA({"backbone": self.backbone, "head": self.head}, ema_decay) if ema_decay else None
        self._mix: Callable[[Inputs, Tensor, Tensor], Inputs | MixedFeatures] = mix_inputs
        self._pool_share = 1.0
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
        is_joint = self.schedule == "joint"
        if is_joint and not self.warmup_steps:
            return None
        accumulation = find_accumulation(self.trainer, epoch_steps)
        if accumulation.problem and not (is_joint and self.warmup_steps <= accumulation.countable):
            raise InputError(accumulation.problem)
        supervised, labels = 0 if is_joint else self.supervised_steps, is_joint or self.strategy.needs_labels
        return BatchSchedule(self.warmup_steps, supervised, self.unsupervised_steps, labels, accumulation.batches)

    # --- interface for the strategy

    def outputs(self, x: Inputs | MixedFeatures) -> Outputs:
        """Compute features and logits.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W), or what `mix` gives.
        """
        features: Tensor = self.backbone(x.x if isinstance(x, MixedFeatures) else x)
        if isinstance(x, MixedFeatures):
            features = cast(Tensor, mix_inputs(features, x.order, x.share))
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
        """Choose the lengths of warm-up and ramp that are left open, and build the control.

        Args:
            stage: Name of the stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage != "fit":
            return
        data, steps = few_label_data(self.trainer), count_known_steps(self.trainer)
        chosen = 0, 0
        if data is not None and steps and self.schedule == "joint" and self.head_start == "random":
            warmup, rise = choose_lengths(steps, find_accumulation(self.trainer, data.epoch_steps).countable)
            chosen = warmup, 0 if self.lambda_ramp == "constant" else rise
        self._set_lengths(*chosen)
        self.start_control()

    @property
    def judge(self) -> Judge:
        """Judge by the score of each validation example."""
        return ScoreJudge(self.task)

    def copy_network(self, ema_decay: float) -> ClassifierControl:
        """Copy the network as it is."""
        return ClassifierControl(self, self.task, ema_decay)

    def _set_lengths(self, *chosen: int) -> None:
        warmup, rise = (ours if own is None else own for own, ours in zip(self._given_lengths, chosen, strict=True))
        self.warmup_steps, self.ramp_steps = warmup, rise
        self.hparams.update(warmup_steps=warmup, ramp_steps=rise)  # a resumed run takes them from there
        if self.schedule == "alternating" or warmup > 0:
            find_unused_parameters(self.trainer.strategy)  # their gradients stay None, as in a single process

    def skip_warmup(self) -> None:
        """Give lambda its full value from the first step, whatever the settings say."""
        self._given_lengths = 0, 0

    def on_fit_start(self) -> None:
        """Tell the strategy how many examples there are, and weigh unlabeled ones of a pool smaller than a batch."""
        if self.strategy.computes_supervised_loss:
            self.refuse_loss_settings(f"strategy {type(self.strategy).__name__} computes the loss on labels itself")
        super().on_fit_start()
        if self.head_start != "random" and self.trainer.ckpt_path is None:
            for network in (self.average, self.control, self.control and self.control.average):
                if network is not None:
                    network.get_submodule("head").load_state_dict(self.head.state_dict())
        lengths = zip(self._given_lengths, (self.warmup_steps, self.ramp_steps), strict=True)
        if any(given is None and chosen for given, chosen in lengths):
            rank_zero_info(
                f"Schedule: warmup_steps is {self.warmup_steps} and ramp_steps is {self.ramp_steps}, because in a "
                "short run a new head's first answers do harm; values of your own replace them."
            )
        data = few_label_data(self.trainer)
        pool = 0 if data is None else len(data.splits["unlabeled"])
        self.strategy.start_labeled(0 if data is None else len(data.splits["labeled"]))
        self.strategy.start(pool)
        self._mix = mix_inputs if data is None else data.views.mix
        labels = (1 if data is None else data.batch_size) * self.trainer.world_size
        self._pool_share = min(1.0, pool / labels) if pool else 1.0

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the lengths that were chosen."""
        super().on_load_checkpoint(checkpoint)
        settings = checkpoint.get("hyper_parameters", {})
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._set_lengths(settings.get("warmup_steps") or 0, settings.get("ramp_steps") or 0)

    def groups(self) -> list[Group]:
        """Return the groups of the classifier, that of the strategy, and those of the control."""
        own = super().groups()
        return [*own, Group("strategy", list(self.strategy.parameters()), 1.0), *self.control_groups(own)]

    def step(self, batch: Any) -> StepResult:
        """Compute L_s, lambda L_u or their sum, by the schedule and the parts of the batch, and the control's L_s."""
        result = self._step(batch)
        labeled = batch.get("labeled")
        if self.control is None or labeled is None:
            return result
        loss = self._supervised(labeled.y, self.control(labeled.x))
        return result._replace(control=loss, logs={**result.logs, "control_loss": loss})

    def _step(self, batch: Any) -> StepResult:
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

    def _update_average(self, average: EMA) -> None:
        self.strategy.update_average(average.update(self))
        if self.control is not None:
            self.control.update_average()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation metrics, and to the accuracy of the control."""
        super().validation_step(batch, batch_idx)
        if self.control is not None:
            self.control.validate(batch.x, batch.y)

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return loss, accuracy, macro-F1 and calibration error, and the control's accuracy in validation."""
        values = super().evaluate(stage)
        if stage == "val" and self.control is not None:
            values[f"control_{self.task.judged_metric[0]}"] = self.control.compute_accuracy()
        return values
