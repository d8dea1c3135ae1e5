"""Fine-tuning: a backbone that may be pretrained, and a classifier trained on few labels.

min_theta sum L(y_i, g(f(x_i; theta))) + lambda R(theta), L the cross-entropy. Linear probing first (`head_only_epochs`)
follows Kumar et al. 2022; layer-wise decay of the learning rate Howard & Ruder 2018.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.data.contract import few_label_data
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.losses.regularizers.l2sp import L2SP
from sft_lightning.networks.adapters import Adapter
from sft_lightning.networks.build import build_encoder
from sft_lightning.paradigms.backbone_classifier import BackboneClassifier
from sft_lightning.paradigms.base import StepResult, compile_in_place, resolve_input_spec
from sft_lightning.paradigms.feature_cache import use_cache
from sft_lightning.paradigms.fitted_head import HeadStart, start_head
from sft_lightning.paradigms.freezing import NormStats, Tune, has_finetuning
from sft_lightning.paradigms.head_weights import attach_head, take_head
from sft_lightning.paradigms.tuned_backbone import TunedBackbone
from sft_lightning.tasks.class_weights import order_weights
from sft_lightning.tasks.make_task import make_task
from sft_lightning.tasks.multi_label import MultiLabelLoss
from sft_lightning.tasks.segmentation import SegmentationLoss
from sft_lightning.training.nonfinite import OnNonfinite
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

# Paradigms that keep the statistics of published weights by default.
_KEEPING = ("FineTuneClassifier", "SemiSupervisedModule", "DecoupledFeatureClassifier")


class FineTuneClassifier(TunedBackbone, BackboneClassifier):
    """A classifier on a backbone, from scratch or from weights."""

    head: nn.Linear
    class_weight: Tensor

    constant_buffers: ClassVar[tuple[str, ...]] = ("class_weight",)

    def __init__(
        self,
        backbone: str,
        num_classes: int = 0,
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        class_names: list[str] | None = None,
        weights: str = "none",
        head_weights: str = "none",
        head_start: HeadStart = "random",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        tune: Tune = "all",
        last_k_blocks: int = 1,
        adapter: Adapter | None = None,
        head_only_epochs: int = 0,
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        norm_stats: NormStats = "auto",
        cache_features: bool = True,
        label_smoothing: float = 0.0,
        target: str = "class",
        multi_label_loss: MultiLabelLoss = "binary_cross_entropy",
        segmentation_loss: SegmentationLoss = "cross_entropy",
        class_weights: Literal["balanced"] | list[float] | dict[str, float] | None = None,
        compile: bool | str = False,
        regularizer: Regularizer | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonfinite = "raise",
        nonfinite_limit: int = 10,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        """Build the network and load its weights.

        Args:
            backbone: `mlp`, `conv`, `wrn_28_2`, a torchvision or timm name, or the class path of an `Encoder`.
            num_classes: Number of classes; the command line takes it from the data.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, H, W) of images, by default
                (3, 224, 224). The command line takes it from the data.
            class_names: Names of the classes for predictions; the command line takes them from the data.
            weights: `none`, `default` (published, downloaded), or the path of a `.safetensors`, checkpoint or run.
            head_weights: `none`, or the path of an exported head or model, or of a run, whose head is attached.
            head_start: Start of a head without weights: `random`, or a classifier fitted to the features of the labels
                before the first step: `logistic_regression`, `ridge` or `nearest_class_mean`.
            mean: Mean of the pixels for normalization; null for that of the weights.
            std: Standard deviation of the pixels for normalization; null for that of the weights.
            tune: Parameters to train: those of the head, of the last k blocks of the backbone and the head, or all.
            last_k_blocks: Number k of blocks that `last_k_blocks` trains.
            adapter: Adapter to train beside the frozen layers of the backbone instead of its own weights: `LoRA` or
                `IA3`; needs the extra `lora`, and weights to adapt.
            head_only_epochs: Epochs in which only the head is trained before the rest is released.
            backbone_lr_scale: Learning rate of the backbone as a share of the head's.
            layer_decay: Factor of the learning rate from each block to the one before it.
            norm_stats: Statistics by which batch normalization of the backbone normalizes in training: those of each
                `batch`, which also move its running statistics, or those of the `weights`, which stay. By default
                (`auto`) they stay where the head was fitted or trained on features that they gave, unless a run from
                scratch or without labels has learned them.
            cache_features: Whether to compute the features once and keep them in `lightning_logs/features` where the
                backbone never learns and views are fixed.
            label_smoothing: Share of the target spread over all classes.
            target: What the data gives networks to learn: `class`, `class_set` where examples have several classes, or
                `mask` where each pixel has one, for which a decoder is put on the backbone; the command line takes it
                from the data.
            multi_label_loss: Loss of examples with several classes: `binary_cross_entropy`, or `asymmetric` (Ridnik et
                al. 2021), under which classes that an example obviously lacks count for less.
            segmentation_loss: Loss of pixels: `cross_entropy`, `dice` (Milletari et al. 2016), which small regions
                weigh in as much as large ones, or their sum, `cross_entropy_and_dice`.
            class_weights: Weight of each example (or pixel) in the loss by its class, by name or in the order of the
                classes; `balanced` for the inverse of the class's number of labels.
            compile: Compile the backbone: true, or a mode of `torch.compile`.
            regularizer: lambda R(theta): `L2`, `L2SP`, `DELTA`, `BSS` or a class of your own.
            optimizer: Function that makes an optimizer from parameter groups; needed for training only.
            lr_scheduler: Function that makes a schedule from the optimizer, or None for a constant rate.
            on_nonfinite: Policy for a step whose loss or gradients are NaN or infinite: stop the training (`raise`) or
                leave the step out (`skip`). In either case it changes no parameter.
            nonfinite_limit: Number of steps that may be left out; one more stops the training.
            image_shape: Former name of `input_spec`, which version 0.4 will remove.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights do not fit.
        """
        super().__init__(
            make_task(target, num_classes, label_smoothing, multi_label_loss, segmentation_loss),
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            regularizer=regularizer,
            on_nonfinite=on_nonfinite,
            nonfinite_limit=nonfinite_limit,
        )
        weight = order_weights(class_weights, class_names, num_classes)
        if not isinstance(adapter, Adapter | None):
            raise InputError(f"adapter is {adapter!r:.60}: give an object such as LoRA() (in YAML, a class_path)")
        if adapter is not None and isinstance(regularizer, L2SP):
            raise InputError(
                "regularizer L2SP draws the backbone's own weights to their start, where adapter "
                f"{type(adapter).__name__} leaves them: set L2, DELTA or BSS"
            )
        self.save_hyperparameters(
            ignore=["optimizer", "lr_scheduler", "regularizer", "adapter", "strategy", "feature_loss", "image_shape"]
        )
        spec = resolve_input_spec(input_spec, image_shape, (3, 224, 224))
        self.hparams["input_spec"] = spec.to_dict()
        self.backbone, tensors = build_encoder(backbone, spec, weights, mean, std)
        if self.task.is_dense:
            if head_start != "random":
                raise InputError(f"head_start is {head_start!r}, which fits one label for each example, and these have "
                                 "masks: leave it at random")  # fmt: skip
            self.backbone.add_decoder(tensors)
        self.head = self.task.build_head(self.backbone.num_features)
        if class_names and len(class_names) != num_classes:
            raise InputError(f"class_names has {len(class_names)} names for {num_classes} classes: give one each")
        new_head = self.head.weight.detach().clone()
        if head_weights == "none":
            names = take_head(self.head, tensors, weights, class_names or None)
        else:
            names = attach_head(self.head, Path(head_weights), backbone, class_names or None)
        self.has_trained_head = not self.head.weight.equal(new_head)
        if names:
            self.name_classes(names)
        self.regularize(self.backbone, compile)  # before the adapter: the start is a plain network
        self.tune_backbone(
            tune, last_k_blocks, adapter, backbone_lr_scale, layer_decay, norm_stats, weights,
            keeps_by_default=head_start != "random" or self.has_trained_head, head_only_epochs=head_only_epochs,
        )  # fmt: skip
        compile_in_place(self.backbone, compile)
        self.head_start = head_start
        self.cache_features = cache_features
        self._balanced = class_weights == "balanced"
        self.register_buffer("class_weight", weight)
        self._weighted = class_weights is not None

    # --- stages of training

    def on_fit_start(self) -> None:
        """Fit the head's start, compute balanced class weights, and use cached features of a frozen backbone."""
        self.check_classes()
        if start_head(self.head, self.backbone, self.head_start, self, self.hparams["head_weights"]):
            self.has_trained_head = True
            if self.depth.learns and self.hparams["weights"] == "none":
                rank_zero_info(
                    f"Warning: head_start is {self.head_start!r}, and the backbone starts from random weights, whose "
                    "features such a head fits by chance; training from there mostly fails: give weights, or set "
                    "head_start to random."
                )
        self.check_norm_stats()
        data = few_label_data(self.trainer)
        learns = self.depth.learns or has_finetuning(self._trainer)
        stays = not learns and self.batch_parts == ("labeled",) and not self.task.is_dense
        if self.cache_features and stays and data is not None and data.fixed_views:
            use_cache(self.trainer, data, self.backbone)
        if self._balanced:
            if data is None:
                raise InputError(
                    "class_weights is 'balanced', but the loaders do not count the labels: give a list of weights"
                )
            counts = data.labeled_counts().clamp(min=1)
            self.class_weight.copy_(counts.sum() / (len(counts) * counts))

            balanced = data.balanced_labels and "unlabeled" in self.batch_parts
            if balanced or self.balanced_from_epoch is not None:
                rank_zero_info(
                    "Warning: class_weights is 'balanced', and batches hold all classes equally often, too: rare "
                    "classes are made up for twice. Use one of the two."
                )

    def refuse_loss_settings(self, reason: str) -> None:
        """Refuse settings of the supervised cross-entropy where training does not use it.

        Args:
            reason: Reason for not using it, as a clause for the message.

        Raises:
            InputError: `class_weights` or `label_smoothing` is set.
        """
        for name, is_set in {
            "class_weights": self._weighted,
            "label_smoothing": bool(self.task.label_smoothing),
        }.items():
            if is_set:
                raise InputError(f"{name} is set, but {reason}, so that it would change nothing: leave it out")

    # --- steps

    def step(self, batch: Any) -> StepResult:
        """Compute the cross-entropy of the labeled batch."""
        labeled = batch["labeled"]
        y: Tensor = labeled[1]
        with self.watched():
            features = self.batch_features(labeled)
        return StepResult(self._supervised(y, self.classify(features)), {})

    def _supervised(self, y: Tensor, logits: Tensor) -> Tensor:
        return self.task.loss(logits, y, self.class_weight if self._weighted else None)
