"""Fine-tuning: a backbone that may have learned elsewhere, and a classifier on few labels.

min_theta sum L(y_i, g(f(x_i; theta))) + lambda R(theta), L the cross-entropy. Linear probing first (`head_only_epochs`)
follows Kumar et al. 2022; layer-wise decay of the learning rate Howard & Ruder 2018.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning.errors import InputError, above_zero, at_least, decays, shares
from sft_lightning.losses.penalties import Regularizer
from sft_lightning.networks.backbones import build_backbone
from sft_lightning.networks.blocks import blocks
from sft_lightning.networks.heads import linear_head
from sft_lightning.networks.weights import Tensors, evaluated, find_weights, read_weights
from sft_lightning.paradigms.base import Paradigm, StepResult
from sft_lightning.paradigms.feature_cache import features, worth_it
from sft_lightning.paradigms.freezing import rewrap, set_trainable
from sft_lightning.paradigms.metrics import ClassifierMetrics
from sft_lightning.paradigms.optimization import Group


class FineTuneClassifier(Paradigm):
    """A classifier on a backbone, from scratch or from weights."""

    class_weight: Tensor

    batch_parts: ClassVar[tuple[str, ...]] = ("labeled",)
    monitor: ClassVar[tuple[str, str]] = ("val/accuracy", "max")

    def __init__(
        self,
        backbone: str,
        num_classes: int = 0,
        image_shape: Sequence[int] = (3, 224, 224),
        class_names: list[str] | None = None,
        weights: str = "none",
        head_weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        tune: Literal["head", "last_k_blocks", "all"] = "all",
        last_k_blocks: int = 1,
        head_only_epochs: int = 0,
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        cache_features: bool = True,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        compile: bool | str = False,
        regularizer: Regularizer | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Builds the network and loads its weights.

        Args:
            backbone: `mlp`, `conv`, `wrn_28_2`, or a torchvision or timm name.
            num_classes: Outputs; the command line takes it from the data.
            image_shape: (C, H, W); the command line takes it from the data.
            class_names: For predictions; the command line takes them from the data.
            weights: `none`, `default` (published, downloaded), or the path of a `.safetensors`, checkpoint or run.
            head_weights: `none`, or the path of an exported head or model, or of a run, whose head is attached.
            mean: Normalization of the pixels; null for that of the weights.
            std: The same.
            tune: What is trained: the head, the last k blocks of the backbone and the head, or all.
            last_k_blocks: k.
            head_only_epochs: Epochs in which only the head is trained before the rest is released.
            backbone_lr_scale: Learning rate of the backbone as a share of the head's.
            layer_decay: Factor of the learning rate from each block to the one before it.
            cache_features: Where the backbone never learns and views are fixed, compute the features once and keep them
                in `lightning_logs/features`.
            label_smoothing: Share of the target spread over all classes.
            class_weights: Weight of each class in the loss; `balanced` for the inverse of its number of labels.
            compile: Compile the backbone: true, or a mode of `torch.compile`.
            regularizer: lambda R(theta): `L2`, `L2SP`, `DELTA`, `BSS` or a class of your own.
            optimizer: See `Paradigm`.
            lr_scheduler: See `Paradigm`.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights do not fit.
        """
        super().__init__(optimizer, lr_scheduler, regularizer)
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}: a classifier needs labeled data of at least 2 classes")
        decays(label_smoothing=label_smoothing)
        above_zero(layer_decay=layer_decay)
        shares(layer_decay=layer_decay)
        at_least(0, backbone_lr_scale=backbone_lr_scale, head_only_epochs=head_only_epochs)
        if isinstance(class_weights, list) and len(class_weights) != num_classes:
            raise InputError(f"class_weights has {len(class_weights)} numbers for {num_classes} classes: give one each")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "regularizer", "strategy", "feature_loss"])
        self.num_classes = num_classes
        self.class_names = class_names or [str(i) for i in range(num_classes)]
        self.backbone, tensors = build_backbone(backbone, image_shape, weights, mean, std)
        self.head = nn.Linear(self.backbone.num_features, num_classes)
        self._take_head(tensors)
        if head_weights != "none":
            self._attach_head(Path(head_weights))
        self.blocks = blocks(self.backbone.net)
        if not 1 <= last_k_blocks <= len(self.blocks):
            raise InputError(f"last_k_blocks is {last_k_blocks}: {backbone!r} has {len(self.blocks)} blocks")
        self._tuned = {"head": 0, "last_k_blocks": last_k_blocks, "all": len(self.blocks)}[tune]
        self._all = tune == "all"
        self.head_only_epochs = head_only_epochs
        self.backbone_lr_scale, self.layer_decay = backbone_lr_scale, layer_decay
        self.label_smoothing, self.cache_features = label_smoothing, cache_features
        self._balanced = class_weights == "balanced"
        weight = torch.tensor(class_weights).float() if isinstance(class_weights, list) else torch.ones(num_classes)
        self.register_buffer("class_weight", weight)
        self._weighted = class_weights is not None
        self._metrics = nn.ModuleDict({f"{stage}_metrics": ClassifierMetrics(num_classes) for stage in ("val", "test")})
        self._released = True
        self._release(head_only_epochs == 0)
        self.regularize(self.backbone, compile)

    def _take_head(self, tensors: Tensors) -> None:
        """Takes over a head of the same size; says so when it has another."""
        old = linear_head(tensors)
        if not old:
            return
        if old["weight"].shape == self.head.weight.shape:
            self.head.load_state_dict(old)
            rank_zero_info("The head of the weights was taken over, too.")
        else:
            there, here = tuple(old["weight"].shape), tuple(self.head.weight.shape)
            rank_zero_info(f"The head of the weights has shape {there} and was replaced by a new one of {here}.")

    def _attach_head(self, path: Path) -> None:
        """Takes a head from a file of its own, which must fit."""
        tensors, about = read_weights(find_weights(path, "head"))
        old = linear_head(evaluated(tensors))
        if not old:
            raise InputError(f"head_weights {str(path)!r} holds no head: give an exported head or model, or a run")
        (classes, features), own = old["weight"].shape, self.backbone
        if features != own.num_features:
            raise InputError(
                f"head_weights {str(path)!r} takes {features} features, backbone {own.name!r} gives "
                f"{own.num_features}: give a head of a backbone with as many features"
            )
        if classes != self.num_classes:
            raise InputError(
                f"head_weights {str(path)!r} tells {classes} classes apart, the data has {self.num_classes}: give a "
                "head of the same classes"
            )
        self.head.load_state_dict(old)
        trained_on = about.get("backbone", own.name)
        other = "" if trained_on == own.name else f" of backbone {trained_on}"
        names = about.get("class_names") or self.class_names
        renamed = "" if names == self.class_names else f"; its classes were called {', '.join(names)}"
        rank_zero_info(f"The head of {path}{other} is attached{renamed}.")

    # --- features that need not be computed again

    @property
    def _features_stay(self) -> bool:
        """Whether no step of the training changes what the backbone makes of a picture."""
        return self._tuned == 0 and self.batch_parts == ("labeled",)

    def _use_cache(self, data: Any) -> None:
        """Gives the data module features in place of pictures, where training sees each example at least once."""
        trainer: Any = self.trainer
        steps, size = data.epoch_steps * (trainer.max_epochs or 1), data.batch_size * trainer.world_size
        if 0 <= steps * size < len(data.splits["labeled"]):
            return
        names = [n for n in ("labeled", "val") if worth_it(data, n, self.backbone.num_features)]
        if not trainer.limit_val_batches:
            names = names[:1]
        made: dict[str, Tensor] = {}
        for first in (True, False):  # one process computes, then the others read
            if trainer.is_global_zero == first:
                for name in names:
                    context = trainer.precision_plugin.forward_context()
                    found = features(
                        self.backbone, data, name, precision=str(trainer.precision), context=context, write=first
                    )
                    if found is not None:
                        made[name] = found.float()
            trainer.strategy.barrier()
        data.use_features(made)
        if made:
            rank_zero_info(f"The backbone is frozen: the features of {' and '.join(made)} are computed once and kept.")

    def on_fit_end(self) -> None:
        """Pictures again."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "use_features"):
            data.use_features({})

    def features(self, x: Tensor) -> Tensor:
        """What the backbone makes of examples.

        Args:
            x: (B, C, H, W) in [0, 1]; features (B, F) from the cache, which are given back.

        Returns:
            (B, F).
        """
        return x if x.ndim == 2 else self.backbone(x)

    # --- what is trained when

    def _release(self, released: bool) -> bool:
        """Sets which modules are trained; returns whether that changed."""
        changed, self._released = released != self._released, released
        frozen = len(self.blocks) - (self._tuned if released else 0)
        self.backbone.train(frozen < len(self.blocks))  # dropout between blocks, too
        for i, modules in enumerate(self.blocks):
            set_trainable(modules, i >= frozen)
        inside = {id(p) for modules in self.blocks for m in modules for p in m.parameters()}
        for p in self.backbone.parameters():  # a class token, say
            if id(p) not in inside:
                p.requires_grad_(frozen == 0)
        return changed

    def train(self, mode: bool = True) -> "FineTuneClassifier":
        """Frozen blocks stay in eval mode."""
        super().train(mode)
        if mode:
            self._release(self._released)
        return self

    def on_fit_start(self) -> None:
        """Counts the labels where the class weights depend on them; looks for features that need no computing."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.cache_features and self._features_stay and getattr(data, "fixed_views", False):
            self._use_cache(data)
        if self._balanced:
            if not hasattr(data, "labeled_counts"):
                raise InputError("class_weights is 'balanced', but the loaders tell no counts: give a list of weights")
            counts = data.labeled_counts().clamp(min=1)
            self.class_weight.copy_(counts.sum() / (len(counts) * counts))

    def on_train_start(self) -> None:
        """Releases the backbone where a resumed epoch does not start anew."""
        super().on_train_start()
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Releases or freezes the backbone when its epoch has come."""
        if self._release(self.backbone_learns(self.current_epoch)):
            rank_zero_info(f"Epoch {self.current_epoch}: the backbone is {'released' if self._released else 'frozen'}.")
            rewrap(self.trainer)

    def backbone_learns(self, epoch: int) -> bool:
        """Whether the backbone is trained in an epoch.

        Args:
            epoch: Counted from 0.
        """
        return epoch >= self.head_only_epochs

    def groups(self) -> list[Group]:
        """The head, then the tuned blocks from the last to the first."""
        found = [Group("head", list(self.head.parameters()), 1.0)]
        tuned = self.blocks[len(self.blocks) - self._tuned :]
        by_block = [[p for m in modules for p in m.parameters()] for modules in tuned]
        if self._all:
            inside = {id(p) for block in by_block for p in block}
            by_block[0] += [p for p in self.backbone.parameters() if id(p) not in inside]
        if self.layer_decay == 1.0:
            return [*found, Group("backbone", [p for block in by_block for p in block], self.backbone_lr_scale)]
        last = len(by_block) - 1
        return found + [
            Group(f"block_{i}", by_block[i], self.backbone_lr_scale * self.layer_decay ** (last - i + 1))
            for i in range(last, -1, -1)
        ]

    # --- steps

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits.

        Args:
            x: (B, C, H, W) in [0, 1].

        Returns:
            (B, num_classes).
        """
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """The head alone.

        Args:
            features: (B, F).

        Returns:
            (B, num_classes).
        """
        logits: Tensor = self.head(features)
        return logits

    def step(self, batch: Any) -> StepResult:
        """Cross-entropy of the labeled part."""
        x, y, *_ = batch["labeled"]
        with self.watched():
            features = self.features(x)
        return StepResult(self._supervised(y, self.classify(features)), {})

    def _supervised(self, y: Tensor, logits: Tensor) -> Tensor:
        weight = self.class_weight if self._weighted else None
        return F.cross_entropy(logits, y, weight, label_smoothing=self.label_smoothing)

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        metrics: Any = self._metrics[f"{stage}_metrics"]
        metrics.update(self(batch.x), batch.y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Class probabilities, float32 of shape (B, num_classes)."""
        return {"indices": batch.indices, "probabilities": self(batch.x).float().softmax(1)}

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Loss, accuracy, macro-F1 and calibration error."""
        values: dict[str, Tensor] = self._metrics[f"{stage}_metrics"].compute()  # type: ignore[operator]
        return values

    def figures(self, stage: str) -> dict[str, Tensor]:
        """The confusion matrix, rows true and columns predicted."""
        confusion: Tensor | None = self._metrics[f"{stage}_metrics"].confusion  # type: ignore[assignment]
        return {} if confusion is None else {"confusion": confusion}
