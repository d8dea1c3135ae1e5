"""Detectors on our encoders: losses are torchvision's, anchors follow strides, and classes are matched by name."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList

from sft_lightning.detection import DetectionHead, build_detector
from sft_lightning.detection.base import Detections, make_targets, split_targets
from sft_lightning.detection.build import Kind
from sft_lightning.detection.dense import DenseHead
from sft_lightning.detection.faster_rcnn import FasterRCNN
from sft_lightning.detection.pyramid import choose_anchor_scale, group_norm
from sft_lightning.detection.reuse import take_detector
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import write_weights
from sft_lightning.utils.errors import InputError

KINDS = get_args(Kind)
SIDE = 64
Y = torch.tensor([[[0, 10, 10, 30, 31, 0], [2, 20.5, 5, 50, 40, 0]], [[1, 4, 40, 20, 60, 0], [-1, 0, 0, 0, 0, 0]]])


def make(kind: str, classes: int = 3, backbone: str = "resnet8", **settings: Any) -> tuple[Encoder, DetectionHead]:
    torch.manual_seed(0)
    encoder, _ = build_encoder(backbone, (3, SIDE, SIDE))
    return encoder, build_detector(kind, encoder, classes, **settings)


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class _Whole(nn.Module):
    """Encoder and pyramid as torchvision wants a backbone."""

    def __init__(self, encoder: Encoder, pyramid: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pyramid = encoder, pyramid

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), one) for i, one in enumerate(self.pyramid(self.encoder.forward_maps(x))))


class _AsTheyAre(nn.Module):
    """A transform that neither resizes nor normalizes."""

    def forward(self, x: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        return ImageList(torch.stack(x), [(SIDE, SIDE)] * len(x)), targets

    def postprocess(self, found: Any, *_: Any) -> Any:
        return found


def assemble(encoder: Encoder, head: DetectionHead) -> nn.Module:
    """torchvision's own detector of the same layers."""
    if isinstance(head, FasterRCNN):
        whole: nn.Module = GeneralizedRCNN(_Whole(encoder, head.pyramid), head.rpn, head.roi, _AsTheyAre())
        return whole
    assert isinstance(head, DenseHead)
    detector: Any = head.detector
    detector.backbone, detector.transform = _Whole(encoder, head.pyramid), _AsTheyAre()
    assert isinstance(detector, nn.Module)
    return detector


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_detections_are_those_of_torchvision(kind: str) -> None:
    encoder, head = make(kind, score_threshold=0.0 if kind != "retinanet" else 0.005)
    x = images()
    torch.manual_seed(5)  # faster_rcnn draws proposals
    ours = head.compute_losses(encoder.forward_maps(x), SIDE, Y)
    ours["class_loss"].backward(retain_graph=True)
    torch.stack([*ours.values()]).sum().backward()
    assert not [n for net in (encoder, head) for n, p in net.named_parameters() if p.grad is None]
    encoder.eval(), head.eval()
    with torch.no_grad():
        found = head.detect(encoder.forward_maps(x), SIDE)
    whole = assemble(encoder, head)
    targets = split_targets(Y, head.first_class)
    assert [one["labels"].tolist() for one in targets] == [[head.first_class, 2 + head.first_class],
                                                           [1 + head.first_class]]  # fmt: skip
    with torch.no_grad():
        theirs = whole.eval()([*x])
        encoder.train(), whole.train()
        torch.manual_seed(5)
        losses = whole([*x], targets)
    assert sorted(map(float, losses.values())) == pytest.approx(sorted(map(float, ours.values())), rel=1e-5)
    assert set(head.box_losses) < set(ours)
    for k, one in enumerate(theirs):
        count = len(one["scores"])
        assert count > 10
        torch.testing.assert_close(found.boxes[k, :count], one["boxes"])
        torch.testing.assert_close(found.scores[k, :count], one["scores"])
        assert torch.equal(found.classes[k, :count] + head.first_class, one["labels"])
        assert (found.classes[k, count:] == -1).all()
        assert not found.scores[k, count:].any()


def test_padding_and_ignored_objects_teach_nothing() -> None:
    encoder, head = make("retinanet")
    maps = encoder.forward_maps(images())
    expected = head.compute_losses(maps, SIDE, Y)
    ignored = torch.tensor([0, 1.0, 1, 60, 60, 1]).expand(2, 1, 6)
    padded = torch.tensor([-1.0, 0, 0, 0, 0, 0]).expand(2, 3, 6)
    more = head.compute_losses(maps, SIDE, torch.cat([ignored, Y, padded], 1))
    assert {n: float(v) for n, v in more.items()} == {n: float(v) for n, v in expected.items()}
    unannotated = head.compute_losses(maps, SIDE, torch.full((2, 1, 6), -2.0))
    assert float(unannotated["box_loss"]) == 0
    found = Detections(torch.rand(2, 3, 4), torch.rand(2, 3), torch.tensor([[0, 1, -1], [2, 0, 1]]))
    y = make_targets(found, torch.tensor([[True, False, False], [False, True, True]]))
    assert y[..., 0].tolist() == [[0, -1, -1], [-1, 0, 1]]
    assert torch.equal(y[1, 1, 1:5], found.boxes[1, 1])
    assert not y[..., 5].any()


def test_anchors_follow_the_strides() -> None:
    encoder, head = make("faster_rcnn", anchor_scale=3)
    assert [x.shape[-1] for x in encoder.forward_maps(images(1))] == [16, 8]
    assert isinstance(head, FasterRCNN)
    assert head.rpn.anchor_generator.sizes == ((12,), (24,), (48,), (96,), (192,))  # strides 4 to 64
    _, head = make("retinanet", backbone="resnet18", anchor_scale=4)
    sizes: Any = head.get_submodule("detector.anchor_generator").sizes
    assert [round(one[0]) for one in sizes] == [32, 64, 128, 256]
    assert all(one[1] / one[0] == pytest.approx(2 ** (1 / 3)) for one in sizes)
    assert choose_anchor_scale(None, 8.0, 64, 800) == pytest.approx(8)
    assert choose_anchor_scale(None, 8.0, 64, 400) == pytest.approx(4)
    assert choose_anchor_scale(None, 8.0, 64, 64) == 2
    assert [group_norm(n).num_groups for n in (4, 16, 24, 64, 256)] == [1, 2, 1, 8, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_an_earlier_detector_are_matched_by_name(kind: str, tmp_path: Path) -> None:
    encoder, old = make(kind)
    tensors = {**{f"backbone.{n}": t for n, t in encoder.state_dict().items()}}
    tensors |= {f"head.{n}": t for n, t in old.state_dict().items()}
    file = tmp_path / "model.safetensors"
    write_weights(file, tensors, {"part": "model", "class_names": ["cat", "dog", "cow"], "backbone": "resnet8"})
    torch.manual_seed(9)
    other, _ = build_encoder("resnet8", (3, SIDE, SIDE))
    new = build_detector(kind, other, 2)
    start = {n: t.clone() for n, t in new.state_dict().items()}
    assert take_detector(new, tensors, str(file), ["cow", "pig"])
    x = images()
    encoder.eval(), old.eval(), new.eval()
    with torch.no_grad():
        maps = encoder.forward_maps(x)
        pairs = [classify(head, maps) for head in (old, new)]
    for theirs, ours in zip(*pairs, strict=True):
        torch.testing.assert_close(ours[..., 0, :], theirs[..., 2, :])  # cow
    rest = {n for n in start if not n.startswith(tuple(new.class_layers))}
    assert all(torch.equal(new.state_dict()[n], old.state_dict()[n]) for n in rest)
    assert not take_detector(build_detector(kind, other, 2), tensors, str(file), ["pig", "hen"])
    assert not take_detector(build_detector(kind, other, 2, width=32), tensors, str(file), ["cow", "pig"])
    assert not take_detector(new, {"head.weight": torch.rand(3, 8)}, str(file), ["cow"])
    kinds = [one for one in KINDS if one != kind]
    assert not take_detector(build_detector(kinds[0], other, 2), tensors, str(file), ["cow", "pig"])


def classify(head: DetectionHead, maps: list[Tensor]) -> list[Tensor]:
    """Outputs of the layers that know classes, without the background: (..., C, rows of a class)."""
    first = head.first_class
    if isinstance(head, FasterRCNN):
        made = torch.Generator().manual_seed(2)
        x = torch.rand(5, head.roi.box_predictor.cls_score.in_features, generator=made)
        scores, boxes = head.roi.box_predictor(x)
        return [scores.view(5, -1, 1)[:, first:], boxes.view(5, -1, 4)[:, first:]]
    assert isinstance(head, DenseHead)
    logits: Tensor = head.detector.head(head.pyramid(maps))["cls_logits"]
    return [logits[..., first:, None]]


@pytest.mark.parametrize(
    ("kind", "backbone", "settings", "expected"),
    [
        ("fast_rcnn", "resnet8", {}, r"detector is 'fast_rcnn' \(did you mean 'faster_rcnn'"),
        ("fcos", "mlp", {}, "backbone 'mlp' gives no maps"),
        ("fcos", "timm/vit_tiny_patch16_224", {}, "is a transformer whose maps have one stride, 16"),
        ("fcos", "resnet8", {"width": 48}, "width is 48: give a multiple of 32"),
        ("fcos", "resnet8", {"anchor_scale": 2.0}, "anchor_scale is 2.0, and fcos has no anchors"),
        ("ssdlite", "resnet8", {"anchor_scale": 2.0}, "boxes of ssdlite are shares of the image"),
        ("retinanet", "resnet8", {"anchor_scale": 0.0}, "anchor_scale is 0.0: give a number above 0"),
        ("retinanet", "resnet8", {"score_threshold": 2.0}, "score_threshold is 2.0: give a share from 0 to 1"),
        ("retinanet", "resnet8", {"max_detections": 0}, "max_detections is 0: give a number of at least 1"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    kind: str, backbone: str, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        make(kind, backbone=backbone, **settings)


def test_images_must_be_square() -> None:
    encoder, _ = build_encoder("resnet8", (3, 64, 32))
    with pytest.raises(InputError, match="detectors take square images"):
        build_detector("fcos", encoder, 2)
