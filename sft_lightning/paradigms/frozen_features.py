"""Classifiers of frozen features: fitted in one call, without gradient steps, and otherwise a run like any other."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sft_lightning.classifiers import Classifier, CoTrainedRegression, LinearClassifier, LogisticRegression
from sft_lightning.classifiers.co_trained_regression import SecondView
from sft_lightning.classifiers.whitening import MAX_UNWHITENED, MAX_WHITENED, Whitened
from sft_lightning.data.contract import FewLabelData, few_label_data
from sft_lightning.data.eval_batches import choose_at_random, choose_by_class
from sft_lightning.data.splits import Split
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.paradigms.backbone_classifier import BackboneClassifier
from sft_lightning.paradigms.base import resolve_input_spec
from sft_lightning.paradigms.feature_cache import MOST, features, give_features
from sft_lightning.paradigms.without_steps import WithoutSteps
from sft_lightning.tasks.make_task import make_task
from sft_lightning.tasks.pixel_samples import sample_pixels
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import InputSpec

_CHOSEN = "chosen"  # name of the split whose features are computed


class FrozenFeatureClassifier(WithoutSteps, BackboneClassifier):
    """A classifier that is fitted to the features of a frozen backbone, or to pixels, when training starts.

    Training is one empty step, after which the classifier is validated and saved. `LabelSpreading` and `whiten` also
    learn from unlabeled examples. The state of the classifier is that of `head`.
    """

    constant_buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        classifier: Classifier | None = None,
        backbone: str = "pixels",
        num_classes: int = 0,
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        class_names: list[str] | None = None,
        weights: str = "none",
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        whiten: int | None = None,
        max_examples: int | None = None,
        target: str = "class",
    ) -> None:
        """Build the backbone and load its weights.

        Args:
            classifier: `LogisticRegression`, `Ridge`, `NearestClassMean`, `KNearestNeighbors`, `LabelSpreading`,
                `CoTrainedRegression` or a class of your own; null for `LogisticRegression`.
            backbone: `pixels` for the inputs themselves, averaged to at most 32 pixels a side, or a network: `mlp`,
                `conv`, `resnet8`, `wrn_28_2`, a torchvision or timm name, or the class path of an `Encoder`;
                `resnet8:flatten` keeps all cells of the last map.
            num_classes: Number of classes; the command line takes it from the data.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, H, W) of images, by default
                (3, 224, 224). The command line takes it from the data.
            class_names: Names of the classes for predictions; the command line takes them from the data.
            weights: `none`, `default` (published, downloaded), or the path of a `.safetensors`, checkpoint or run.
            mean: Mean of the pixels for normalization; null for that of the weights.
            std: Standard deviation of the pixels for normalization; null for that of the weights.
            whiten: Number of whitened principal components of all examples to classify, such as 64 for graphs of
                pixels; null for the features themselves.
            max_examples: Largest number of examples, or of pixels of masks, to learn from, labeled ones first; the seed
                chooses. null for 60,000 with `whiten` and 20,000 without.
            target: What examples have: `class`, `class_set` for several classes, or `mask` for one of each pixel, of
                which a linear classifier takes the backbone's maps side by side. The command line takes it from the
                data.

        Raises:
            InputError: A setting is out of its range, the backbone is unknown, or the weights or classifier do not fit.
        """
        super().__init__(make_task(target, num_classes), optimizer=None, lr_scheduler=None)
        if not isinstance(classifier, Classifier | None):
            raise InputError(
                f"classifier is {classifier!r:.60}: give an object such as LabelSpreading() (in YAML, a class_path)"
            )
        if target == "class_set":
            (classifier or LogisticRegression()).require_sets()
        if self.task.is_dense:
            _check_pixel_classifier(classifier, whiten)
        if isinstance(classifier, CoTrainedRegression) and whiten is not None:
            raise InputError(f"whiten is {whiten}, and CoTrainedRegression takes the features themselves: leave it out")
        check_min(1, whiten=whiten, max_examples=max_examples)
        self.save_hyperparameters(ignore=["classifier"])
        spec = resolve_input_spec(input_spec, None, (3, 224, 224))
        self.hparams["input_spec"] = spec.to_dict()
        self.backbone, _ = build_encoder(backbone, spec, weights, mean, std)
        if self.task.is_dense:
            self.backbone.stack_maps()
        self.backbone.requires_grad_(False)
        if isinstance(classifier, CoTrainedRegression):
            _build_second_view(classifier, self.backbone)
        self.classifier_name = type(classifier or LogisticRegression()).__name__
        self.head = classifier or LogisticRegression()
        if whiten is not None:
            self.head = Whitened(self.head, whiten)
        self.max_examples = max_examples or (MAX_UNWHITENED if whiten is None else MAX_WHITENED)
        if class_names:
            if len(class_names) != num_classes:
                raise InputError(f"class_names has {len(class_names)} names for {num_classes} classes: give one each")
            self.name_classes(class_names)

    # --- fitting

    def check_processes(self, world_size: int) -> None:
        """Check that one process fits, which takes seconds; several may evaluate and predict.

        Args:
            world_size: Number of processes of the Trainer.

        Raises:
            InputError: There are several.
        """
        if world_size > 1:
            raise InputError(
                f"{type(self).__name__} is fitted in one process, and the Trainer has {world_size}: set "
                "trainer.devices and trainer.num_nodes to 1"
            )

    def on_fit_start(self) -> None:
        """Fit the classifier, unless its state comes from a checkpoint.

        Raises:
            InputError: The data gives no examples as they are, their classes are those of another model, or they are
                too many for memory.
        """
        self.check_classes()
        data = few_label_data(self.trainer)
        if data is None:
            raise InputError(
                f"{type(self).__name__} needs labeled examples without random changes, which these loaders do not "
                "give: use a FewLabelDataModule, such as ImageDataModule"
            )
        if self.trainer.ckpt_path is None:
            self._fit_head(data)
        if self._caches:
            give_features(self.trainer, data, self.backbone, ("val",))

    @property
    def _caches(self) -> bool:
        """Whether the features are worth a file: pixels are read as fast from their own, and maps are too large."""
        return not self.task.is_dense and any(True for _ in self.backbone.parameters())

    @torch.no_grad()
    def _fit_head(self, data: FewLabelData) -> None:
        begin = time.monotonic()
        if not len(data.splits["labeled"]):
            raise InputError(f"the data gives no label to fit {self.classifier_name} to: set num_labels, or add labels")
        seed, unlabeled = data.request.seed, data.splits["unlabeled"]
        if self.task.is_dense:
            with self.trainer.precision_plugin.forward_context():
                each = max(1, self.max_examples // len(data.splits["labeled"]))
                sample = sample_pixels(self.backbone, data.batches_of("labeled", self.device), each, seed)
            self.head.fit(sample.x, sample.y, None, self.num_classes).to(self.device)
            what = f"{len(sample.y):,} pixels of {len(data.splits['labeled']):,} masks"
            rank_zero_info(f"{self.classifier_name} is fitted to {what} in {time.monotonic() - begin:.1f} s.")
            return
        self.backbone.fit_inputs(batch.x for batch in data.training_batches(self.max_examples, self.device))
        labeled = choose_by_class(data.splits["labeled"], self.max_examples, seed)
        x, y = self._compute_features(self.backbone, data, labeled)
        others, left = None, self.max_examples - len(x)
        if self.head.learns_from_unlabeled and len(unlabeled) and left > 0:
            if len(unlabeled) > left:
                unlabeled = choose_at_random(unlabeled, left, seed)
            others, _ = self._compute_features(self.backbone, data, unlabeled)
        if isinstance(self.head, CoTrainedRegression):
            second = None if others is None else self._read_second_view(self.head, data, labeled, unlabeled)
            self.head.fit(x, y, others, self.num_classes, second).to(self.device)
        else:
            self.head.fit(x, y, others, self.num_classes).to(self.device)
        also = "" if others is None else f" and {len(others):,} unlabeled examples"
        rank_zero_info(
            f"{self.classifier_name} is fitted to {len(y):,} labels{also}, {x.shape[1]:,} features each, in "
            f"{time.monotonic() - begin:.1f} s."
        )

    def _read_second_view(
        self, head: CoTrainedRegression, data: FewLabelData, labeled: Split, unlabeled: Split
    ) -> SecondView:
        """Return the second view of labeled and unlabeled examples, by a backbone that reads the same inputs."""
        encoder = _build_second_view(head, self.backbone).to(self.device)
        encoder.fit_inputs(batch.x for batch in data.training_batches(self.max_examples, self.device))
        views = [self._compute_features(encoder, data, split)[0] for split in (labeled, unlabeled)]
        return SecondView(views[0], views[1], encoder.gives_counts)

    def _compute_features(self, encoder: Encoder, data: FewLabelData, split: Split) -> tuple[Tensor, Tensor]:
        """Return the features of the readable examples of a split, float32 (N, F), and their targets, on the CPU."""
        if (size := 4 * len(split) * encoder.num_features) > MOST:
            raise InputError(
                f"{len(split):,} examples with {encoder.num_features:,} features each take {size / 1e9:.0f} GB: "
                "lower max_examples, or use a backbone with fewer features"
            )
        plugin = self.trainer.precision_plugin
        data.splits[_CHOSEN] = split
        try:
            if encoder is self.backbone and self._caches:
                precision = str(self.trainer.precision)
                context = plugin.forward_context()
                x = features(encoder, data, _CHOSEN, precision=precision, context=context)
                if x is not None:
                    return x.float(), data.make_targets(split.labels)
            with eval_mode(encoder), plugin.forward_context():
                batches = data.batches_of(_CHOSEN, self.device)
                pairs = [(encoder(batch.x).float().cpu(), batch.y.cpu()) for batch in batches]
        finally:
            del data.splits[_CHOSEN]
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])

    def classify(self, features: Tensor) -> Tensor:
        """Apply the classifier to features.

        Args:
            features: Features, (B, F).

        Returns:
            Logits, float32, (B, num_classes).

        Raises:
            InputError: The classifier is not fitted.
        """
        if not self.head.num_classes:
            raise InputError(f"{self.classifier_name} is not fitted: call `fit`, or load a checkpoint")
        with torch.autocast(features.device.type, enabled=False):
            return self.task.apply_classifier(self.head, features.float())


def _build_second_view(classifier: CoTrainedRegression, backbone: Encoder) -> Encoder:
    """Build the backbone of the second view, which takes the inputs of the first."""
    try:
        encoder, _ = build_encoder(classifier.second_view, backbone.input_spec)
    except InputError as error:
        raise InputError(f"second_view of CoTrainedRegression: {error}") from None
    return encoder.requires_grad_(False)


def _check_pixel_classifier(classifier: Classifier | None, whiten: int | None) -> None:
    """Refuse what pixels of masks have not."""
    if not isinstance(classifier, LinearClassifier | None) or isinstance(classifier, CoTrainedRegression):
        raise InputError(
            f"classifier is {type(classifier).__name__}, and the examples have masks: give LogisticRegression, Ridge "
            "or NearestClassMean"
        )
    if whiten is not None:
        raise InputError(f"whiten is {whiten}, and the examples have masks, whose maps are not whitened: leave it out")
