"""Trained networks that teach others: a run with a classifier of any kind, or published weights without one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sft_lightning import classifiers
from sft_lightning.classifiers.whitening import Whitened
from sft_lightning.data.class_names import find_missing_classes, format_class_names
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import find_weights, read_weights
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.record import CONFIG
from sft_lightning.runs.trained_network import TrainedNetwork, load_trained_network
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs, InputSpec
from sft_lightning.utils.yaml_files import read_yaml

_HEAD = "head."


class Answers(NamedTuple):
    """Answers of a teacher.

    Attributes:
        features: Features, (B, F).
        logits: Logits of the student's classes in their order, (B, C); None for a teacher without a classifier.
    """

    features: Tensor
    logits: Tensor | None


class Teacher(nn.Module):
    """A network that answers and never learns."""

    def __init__(self, backbone: Encoder, head: nn.Module | None, rows: Sequence[int]) -> None:
        """Join the parts.

        Args:
            backbone: Network from inputs to features.
            head: Module from features (B, F) to logits of the teacher's classes; None for none.
            rows: Position of each class of the student among them.
        """
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.int64))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Inputs) -> Answers:
        """Return features and logits, float32.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).
        """
        features = self.backbone(x).float()
        if self.head is None:
            return Answers(features, None)
        with torch.autocast(features.device.type, enabled=False):
            return Answers(features, self.head(features)[:, self.rows])


def load_teacher(
    name: str,
    spec: InputSpec,
    class_names: Sequence[str],
    needs_classes: bool = True,
    value_ranges: Mapping[str, list[float]] | None = None,
) -> Teacher:
    """Load a teacher, whose classes are matched by name.

    Args:
        name: Folder of a run or of a solution of `solve`, a checkpoint, or the name of a backbone
            with published weights, which has no classifier.
        spec: Inputs that the data gives.
        class_names: Classes of the student.
        needs_classes: Whether a teacher without a classifier is refused.
        value_ranges: Scale of the data's values of more than 8 bits, by their kind; None without.

    Raises:
        InputError: The teacher does not exist, has no classifier although one is needed, knows other classes, or takes
            other inputs, also by their scale.
    """
    if not needs_classes and not Path(name).exists():
        try:
            return Teacher(build_encoder(name, spec, "default")[0], None, [])
        except InputError as error:
            raise InputError(
                f"teacher {name!r} is neither a run, a file, nor a backbone whose weights can be had: {error}"
            ) from error
    path = find_weights(Path(name), "head", "teacher")
    trained = load_trained_network(path)
    trained.require_classes(name)
    backbone, head = trained.network(), _load_head(trained, path)
    if backbone.input_spec != spec:
        raise InputError(
            f"teacher {name!r} takes inputs of shape {backbone.input_spec.shape}, and the data gives {spec.shape}: "
            "train both on the same size"
        )
    for kind, theirs in (trained.metadata.get("value_ranges") or {}).items():
        if (ours := (value_ranges or {}).get(kind, theirs)) != theirs:
            scales = " and ".join(f"{low:g} to {high:g}" for low, high in (theirs, ours))
            raise InputError(
                f"teacher {name!r} and the data scale values of {kind} by different ranges, {scales}: set "
                f"data.init_args.value_range to {theirs}"
            )
    if head is None:
        if needs_classes:
            raise InputError(f"teacher {name!r} has no classifier: give a run that has one")
        return Teacher(backbone, None, [])
    names = trained.metadata["class_names"]
    if missing := find_missing_classes(list(class_names), names):
        raise InputError(
            f"teacher {name!r} does not know {format_class_names(missing)}: give one that was trained on all classes"
        )
    return Teacher(backbone, head, [names.index(one) for one in class_names])


def _load_head(trained: TrainedNetwork, path: Path) -> nn.Module | None:
    """Return the classifier of a run: its linear layer, or the one that was fitted to features without a layer."""
    if trained.head:
        weight = trained.head["weight"]
        layer = nn.Linear(weight.shape[1], len(weight))
        layer.load_state_dict(trained.head)
        return layer
    run = find_run(path)
    if trained.metadata["made_by"] != "FrozenFeatureClassifier" or run is None:
        return None
    settings: dict[str, Any] = read_yaml(run / CONFIG)["model"].get("init_args") or {}
    given = settings.get("classifier") or {}
    name = str(given.get("class_path", "LogisticRegression")).rpartition(".")[2]
    if name not in classifiers.__all__:  # a class of the user's own
        return None
    head: nn.Module = getattr(classifiers, name)(**(given.get("init_args") or {}))
    if settings.get("whiten") is not None:
        head = Whitened(head, settings["whiten"])  # type: ignore[arg-type] # a classifier, as its name says
    tensors = read_weights(path)[0]
    head.load_state_dict({n.removeprefix(_HEAD): t for n, t in tensors.items() if n.startswith(_HEAD)})
    return head
