"""Decoupled features and classifier: L = L_f(f(x), y) + L_g(g(f(x)), y), each part trained and evaluated by itself."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.data.contract import few_label_data
from sft_lightning.losses.features.base import FeatureLoss
from sft_lightning.networks.heads import normalize_tau
from sft_lightning.paradigms.base import StepResult
from sft_lightning.paradigms.feature_metrics import FeatureMetrics
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.paradigms.fitted_head import fit_head
from sft_lightning.paradigms.labeled_features import compute_labeled_features
from sft_lightning.training.optimizers import Group
from sft_lightning.utils.errors import InputError, check_fraction, check_min

_FITTED = ("nearest_class_mean", "logistic_regression", "ridge")  # heads made of features, without steps
_RETRAINED = ("crt", "lws")  # heads that a second stage derives from a trained classifier


class DecoupledFeatureClassifier(FineTuneClassifier):
    """A feature extractor f with its own loss, and a classifier g; accepts all settings of `FineTuneClassifier`.

    `joint`: both losses reach f. `detached`: L_g stops at the features. `two_stage`: f learns for `feature_epochs`,
    then g on frozen features. `logistic_regression` and `ridge` fit the head to the labels' features whenever it is
    evaluated. The other heads than `linear` are those of Kang et al. 2020: the class means or the normalized weights,
    which take no steps, and `crt` and `lws`, whose first stage is `joint` and whose second
    re-trains or re-scales the classifier on class-balanced batches.
    """

    stage: Tensor

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled",)

    def __init__(
        self,
        feature_loss: FeatureLoss,
        coupling: Literal["joint", "detached", "two_stage"] = "joint",
        feature_epochs: int = 0,
        head: Literal[
            "linear", "nearest_class_mean", "logistic_regression", "ridge", "tau_normalized", "crt", "lws"
        ] = "linear",
        tau: float = 1.0,
        feature_weight: float = 1.0,
        classifier_weight: float = 1.0,
        neighbors: int = 20,
        remembered: int = 10_000,
        **classifier: Any,
    ) -> None:
        """Build the feature extractor and the classifier.

        Args:
            feature_loss: L_f: `CosinePrototype`, `SupCon`, `Center` or a class of your own.
            coupling: Reach of L_g's gradient: `joint`, `detached` or `two_stage`.
            feature_epochs: Number of epochs of the first stage of `two_stage`.
            head: Kind of the classifier.
            tau: Exponent of the `tau_normalized` head: 0 changes nothing, 1 makes all weights equally long.
            feature_weight: Weight of L_f.
            classifier_weight: Weight of L_g.
            neighbors: Number k of neighbors for the k-nearest-neighbor accuracy.
            remembered: Maximum number of labeled examples that evaluations compare features with, and that class means
                are computed from.
            classifier: All settings of `FineTuneClassifier`, by name.

        Raises:
            InputError: A setting is out of its range, or two do not go together.
        """
        super().__init__(**classifier)
        check_min(0, feature_weight=feature_weight, classifier_weight=classifier_weight)
        check_min(1, neighbors=neighbors, remembered=remembered)
        check_fraction(tau=tau)
        self.coupling, self.feature_epochs, self.head_kind, self.tau = coupling, feature_epochs, head, tau
        self.feature_weight, self.classifier_weight, self.remembered = feature_weight, classifier_weight, remembered
        self._check()
        self.feature_loss = feature_loss
        feature_loss.build(self.num_classes, self.backbone.num_features)
        self.scale = nn.Parameter(torch.ones(self.num_classes)) if head == "lws" else None
        self.register_buffer("stage", torch.tensor(1))
        self._made_at = -1
        size = self.num_classes, self.backbone.num_features, neighbors
        self._feature_metrics = nn.ModuleDict({f"{stage}_features": FeatureMetrics(*size) for stage in ("val", "test")})
        self._trained_stage = 0
        self._set_trained(1)

    def _check(self) -> None:
        if self.task.name != "classification":
            have = "masks" if self.task.is_dense else "several (label_separator)"
            raise InputError(
                f"DecoupledFeatureClassifier learns features from examples of one class each, and these have {have}: "
                "use FineTuneClassifier"
            )
        two = self.coupling == "two_stage"
        if two and self.feature_epochs < 1:
            raise InputError(f"feature_epochs is {self.feature_epochs}: two_stage needs at least 1 for its first stage")
        if not two and self.feature_epochs:
            raise InputError(
                f"feature_epochs is {self.feature_epochs}, but coupling is {self.coupling!r}: set two_stage"
            )
        if two and self.head_only_epochs:
            raise InputError(
                f"head_only_epochs is {self.head_only_epochs}, but two_stage trains the features first: set it to 0"
            )
        if self.head_kind in _RETRAINED and not two:
            raise InputError(
                f"head is {self.head_kind!r}, which a second stage makes: set coupling: two_stage and feature_epochs"
            )
        if self.head_kind in _FITTED and (two or self.head_only_epochs):
            raise InputError(
                f"head is {self.head_kind!r}, which leaves a stage of its own nothing to train: set coupling: joint "
                "and head_only_epochs: 0"
            )
        if self.features_alone and not self.depth.learns:
            raise InputError(
                "tune is 'head', but L_f alone is to train the features: set tune: all, or coupling: joint"
            )

    # --- stages of training

    @property
    def features_alone(self) -> bool:
        """Whether L_f alone trains the features."""
        if self.head_kind in _RETRAINED:
            return False
        return self.coupling != "joint" or self.head_kind in _FITTED

    @property
    def balanced_from_epoch(self) -> int | None:  # type: ignore[override] # the head decides
        """Epoch from which labeled batches hold all classes equally often."""
        return self.feature_epochs if self.head_kind in _RETRAINED else None

    def backbone_learns(self, epoch: int) -> bool:
        """Return whether the backbone is trained in an epoch: with two stages, only in the first.

        Args:
            epoch: Number of the epoch, counted from 0.
        """
        return epoch < self.feature_epochs if self.coupling == "two_stage" else super().backbone_learns(epoch)

    def _set_trained(self, stage: int) -> None:
        """Freeze the classifier where it does not learn, and L_f's own parameters in the second stage.

        What a callback freezes stays frozen until another stage begins.
        """
        if stage == self._trained_stage:
            return
        self._trained_stage = stage
        learned = self.head_kind not in _FITTED and not (self.coupling == "two_stage" and self.features_alone)
        self.head.requires_grad_(learned if stage == 1 else self.head_kind != "lws")
        if self.scale is not None:
            self.scale.requires_grad_(stage == 2)
        self.feature_loss.requires_grad_(stage == 1)

    def on_fit_start(self) -> None:
        """Refuse a second stage that never begins, and warn about features that may collapse."""
        if self.head_kind in _FITTED:
            self.refuse_loss_settings(f"head {self.head_kind} is made of features, without a loss")
        super().on_fit_start()
        self._made_at = -1
        data = few_label_data(self.trainer)
        if self.head_kind in _FITTED and data is None:
            raise InputError(
                f"head is {self.head_kind!r}, but the loaders do not give labeled examples as they are: train it with "
                "a data module that has labeled_batches, as ImageDataModule does"
            )
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        ends = epochs is not None and 0 <= epochs <= self.feature_epochs
        ends = ends or 0 < steps <= self.feature_epochs * (0 if data is None else data.epoch_steps)
        is_dry_run: bool = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.coupling == "two_stage" and ends and not is_dry_run:
            raise InputError(
                f"feature_epochs is {self.feature_epochs}, but training ends before (max_epochs {epochs}, max_steps "
                f"{steps}): raise them, so that the classifier has epochs of its own"
            )
        if self.features_alone and not self.feature_loss.separates_classes:
            name = type(self.feature_loss).__name__
            rank_zero_info(
                f"Warning: {name} as it is set draws classes together and keeps none apart; where it alone trains the "
                "features they may become one point (watch val/spread and val/knn_accuracy): use SupCon, "
                "CosinePrototype with prototypes: simplex, or coupling: joint."
            )

    def _stage_of(self, epoch: int) -> int:
        return 2 if self.coupling == "two_stage" and epoch >= self.feature_epochs else 1

    def _set_depth(self, epoch: int) -> None:
        self._set_trained(self._stage_of(epoch))  # before the backbone: DDP is wrapped anew with what learns then
        super()._set_depth(epoch)

    def on_train_epoch_start(self) -> None:
        """Begin the second stage when its epoch has come."""
        stage = self._stage_of(self.current_epoch)
        if stage == 1:  # again, where a module is trained a second time
            self.stage.fill_(1)
        if stage == 2 and int(self.stage) == 1:  # a resumed run that is in its second stage finds 2 in its checkpoint
            self.stage.fill_(2)
            if self.head_kind == "crt":
                # Seeded by the run alone, whatever random numbers were used since.
                with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                    torch.manual_seed((torch.initial_seed() + 1) % 2**32)
                    self.head.reset_parameters()
                for p in self.head.parameters():  # the momentum belongs to the old head
                    for kept in self.trainer.optimizers[0].state[p].values():
                        if isinstance(kept, Tensor):
                            kept.zero_()
        super().on_train_epoch_start()

    def groups(self) -> list[Group]:
        """Return the groups of the classifier, the scales, and the parameters of L_f."""
        scale = [] if self.scale is None else [self.scale]
        extra = [Group("scale", scale, 1.0), Group("feature_loss", list(self.feature_loss.parameters()), 1.0)]
        return [*super().groups(), *extra]

    # --- steps

    def classify(self, features: Tensor) -> Tensor:
        """Apply the head to features.

        Args:
            features: Features, (B, F).

        Returns:
            Logits, (B, num_classes).
        """
        if self.scale is not None:
            return F.linear(features, self.head.weight * self.scale[:, None], self.head.bias)
        if self.head_kind in _FITTED:
            with torch.autocast(features.device.type, enabled=False):
                return super().classify(features.to(self.head.weight))
        if self.head_kind == "tau_normalized" and not self.training:
            return F.linear(features, normalize_tau(self.head.weight, self.tau))
        return super().classify(features)

    def step(self, batch: Any) -> StepResult:
        """Compute L_f, L_g or both, by coupling and stage."""
        labeled = batch["labeled"]
        y: Tensor = labeled[1]
        with self.watched():
            features = self.batch_features(labeled)
        logs: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        if self.depth.released or self.coupling != "two_stage":
            logs["feature"] = self.feature_loss(features, y)
            parts.append(self.feature_weight * logs["feature"])
        if self.head.weight.requires_grad or (self.scale is not None and self.scale.requires_grad):
            inputs = features.detach() if self.coupling == "detached" else features
            logs["classifier"] = self._supervised(y, self.classify(inputs))
            parts.append(self.classifier_weight * logs["classifier"])
        return StepResult(torch.stack(parts).sum(), logs)

    # --- evaluation of each part

    @torch.no_grad()
    def _remember(self, stage: str) -> None:
        """Store features of unaugmented labeled examples for the metrics and heads made of features."""
        metrics: Any = self._feature_metrics[f"{stage}_features"]
        labeled = compute_labeled_features(self, self.backbone, self.remembered)
        if labeled is None:
            metrics.forget()
            return
        weight, bias = metrics.remember(*labeled)
        if self.head_kind in _FITTED and self.trainer.state.fn == TrainerFn.FITTING:
            if self.head_kind == "nearest_class_mean":  # by the cosine, as the metrics
                self.head.weight.copy_(weight)
                self.head.bias.copy_(bias)
            else:
                fit_head(self.head, self.head_kind, *labeled)
            self._made_at = self.trainer.global_step

    def on_validation_epoch_start(self) -> None:
        """Store the labeled features that validation compares with."""
        self._remember("val")

    def on_train_epoch_end(self) -> None:
        """Update a head made of features if no validation has done so since the last step."""
        if self.head_kind in _FITTED and self._made_at != self.trainer.global_step:
            self._remember("val")
        super().on_train_epoch_end()

    def on_test_epoch_start(self) -> None:
        """Store the labeled features that the test compares with."""
        self._remember("test")

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        features = self.batch_features(batch)
        classifier: Any = self._metrics[f"{stage}_metrics"]
        classifier.update(self.classify(features), batch.y)
        parts: Any = self._feature_metrics[f"{stage}_features"]
        parts.update(features, batch.y)

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics of the classifier and of the features."""
        features: Mapping[str, Tensor] = self._feature_metrics[f"{stage}_features"].compute()  # type: ignore[operator]
        return {**super().evaluate(stage), **features}
