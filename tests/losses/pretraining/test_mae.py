"""Masked autoencoders against plain loops that handle one image at a time."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torchvision.models import VisionTransformer

from sft_lightning import ImageDataModule, PretrainView, SelfSupervisedModule
from sft_lightning.data.batches import Unlabeled
from sft_lightning.losses.pretraining import MAE
from sft_lightning.networks.vision.backbones import Backbone, build_backbone
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, moved, state, trainer
from tests.paradigms.test_self_supervised import Doubled

RATE = 0.05
SMALL: dict[str, Any] = {"decoder_width": 32, "decoder_depth": 2}
VIEW = PretrainView(crop_scale=[0.5, 1.0], jitter=0, gray=0, blur=0)


def torchvision_vit(shape: tuple[int, int, int] = (3, 32, 32)) -> Backbone:
    net = VisionTransformer(shape[1], 8, 2, 2, 16, 32)
    net.heads = torch.nn.Sequential()
    return Backbone("vit", net, 16, shape)


def attached(name: str = "resnet8", shape: tuple[int, int, int] = (3, 64, 64), **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    encoder = torchvision_vit(shape) if name == "vit" else build_backbone(name, shape)[0]
    objective = MAE(**{**SMALL, **settings})
    objective.attach(encoder)
    return encoder.double(), objective.double()


def batch_of(x: Tensor, seed: int = 0) -> Unlabeled:
    return Unlabeled(x, torch.arange(len(x)), seed, crops=(x,))


def images(count: int = 6, shape: tuple[int, int, int] = (3, 64, 64)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


KINDS = [
    ("resnet8", (1, 28, 28)),
    ("resnet8:flatten", (1, 28, 28)),
    ("conv", (1, 28, 28)),
    ("timm/test_resnet", (1, 64, 64)),
    ("timm/test_vit", (3, 64, 64)),
    ("timm/test_vit2", (1, 64, 64)),
    ("vit", (3, 32, 32)),
]


@pytest.mark.parametrize(("name", "shape"), KINDS)
def test_hidden_pixels_are_not_seen_and_visible_ones_are(name: str, shape: tuple[int, int, int]) -> None:
    encoder, objective = attached(name, shape)
    decoder = objective.decoder
    x = images(4, shape)
    visible = objective.draw_visible(x, 3)
    other, third = decoder.split(x).clone(), decoder.split(x).clone()
    for i in range(len(x)):
        for patch in range(decoder.num_patches):
            (third if patch in visible[i] else other)[i, patch] = 0.3
    found = [decoder(encoder.eval(), one, visible) for one in (x, decoder.merge(other), decoder.merge(third))]
    predicted, features = found[0]
    assert predicted.shape == (4, decoder.num_patches, shape[0] * decoder.patch**2)
    assert features.shape == (4, encoder.num_features)
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    assert not any(torch.allclose(mine, theirs, rtol=1e-4) for mine, theirs in zip(found[2], found[0], strict=True))
    # A plain pass sees all of an image.
    assert not torch.allclose(encoder(x), encoder(decoder.merge(other)), rtol=1e-4)


def test_patches_are_squares_of_the_image() -> None:
    _, objective = attached("resnet8", (2, 12, 8), patch=4)
    x = images(3, (2, 12, 8))
    patches = objective.decoder.split(x)
    for row in range(3):
        for column in range(2):
            square = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(patches[:, 2 * row + column], square.flatten(1))
    assert torch.equal(objective.decoder.merge(patches), x)


@pytest.mark.parametrize(("side", "patch"), [(28, 4), (32, 4), (64, 8), (96, 12), (5, 1)])
def test_default_patch_divides_the_image(side: int, patch: int) -> None:
    assert attached("resnet8", (1, side, side))[1].decoder.patch == patch


def test_visible_patches_are_random_distinct_and_repeat_with_the_seed() -> None:
    _, objective = attached("resnet8", (1, 28, 28), hidden=0.6)
    x = images(200, (1, 28, 28))
    visible, again, other = (objective.draw_visible(x, seed) for seed in (1, 1, 2))
    assert visible.shape == (200, 20)  # of 49
    assert all(len(set(row.tolist())) == 20 for row in visible)
    assert torch.equal(visible, again)
    assert not torch.equal(visible, other)
    assert len({tuple(row.sort().values.tolist()) for row in visible}) == 200
    assert (torch.bincount(visible.flatten(), minlength=49) > 40).all()


class PlainTokens:
    """A vision transformer of timm and its decoder, one image after the other."""

    def __init__(self, encoder: Any, objective: Any) -> None:
        self.net, self.decoder = copy.deepcopy(encoder.net), copy.deepcopy(objective.decoder)
        self.networks = [self.net, self.decoder]

    def predict(self, x: Tensor, visible: Tensor) -> Tensor:
        net, decoder = self.net, self.decoder
        found = []
        side = x.shape[-1] // 16
        for image, places in zip(x.expand(-1, 3, -1, -1), visible.tolist(), strict=True):
            tokens = net.patch_embed(image[None]).flatten(0, -2) + net.pos_embed[0, 1:]
            kept = torch.stack([net.cls_token[0, 0] + net.pos_embed[0, 0], *(tokens[place] for place in places)])
            encoded = decoder.embed(net.norm(net.blocks(kept[None]))[0])
            full = []
            for place in range(side**2):
                token = encoded[1 + places.index(place)] if place in places else decoder.mask_token
                row, column = divmod(place, side)
                angles = [10_000 ** (-k / 8) for k in range(8)]
                position = [f(at * w) for at in (column, row) for f in (math.sin, math.cos) for w in angles]
                full.append(token + torch.tensor(position, dtype=token.dtype))
            found.append(decoder.head(decoder.blocks(torch.stack([encoded[0], *full])[None]))[0, 1:])
        return torch.stack(found)


class PlainMap:
    """A ResNet-8 and one layer, which paints squares in turn."""

    def __init__(self, encoder: Any, objective: Any) -> None:
        self.net, self.decoder = copy.deepcopy(encoder.net), copy.deepcopy(objective.decoder)
        self.networks = [self.net, self.decoder]

    def predict(self, x: Tensor, visible: Tensor) -> Tensor:
        masked = torch.zeros_like(x)
        for i, places in enumerate(visible.tolist()):
            for place in places:
                row, column = divmod(place, 7)
                square = (slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
                masked[i][square] = x[i][square]
        cells = masked
        for layer in list(self.net)[:-2]:
            cells = layer(cells)
        head = self.decoder.head
        drawn = torch.zeros_like(x)[:, 0]
        for row in range(4):
            for column in range(4):
                pixels = cells[:, :, row, column] @ head.weight[:, :, 0, 0].T + head.bias
                drawn[:, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7] = pixels.view(-1, 7, 7)
        rows = [drawn[:, 4 * (k // 7) : 4 * (k // 7) + 4, 4 * (k % 7) : 4 * (k % 7) + 4].flatten(1) for k in range(49)]
        return torch.stack(rows, 1)


@pytest.mark.parametrize(("backbone", "normalize"), [("resnet8", True), ("resnet8", False), ("timm/test_vit", True)])
def test_20_steps_equal_a_plain_loop(backbone: str, normalize: bool) -> None:
    side = 28 if backbone == "resnet8" else 64
    torch.manual_seed(0)
    objective = MAE(normalize=normalize, hidden=0.6, **SMALL)
    sgd = lambda p: torch.optim.SGD(p, RATE)  # noqa: E731
    model = SelfSupervisedModule(objective, backbone, (1, side, side), optimizer=sgd).double()
    plain: Any = (PlainMap if side == 28 else PlainTokens)(model.encoder, objective)
    seen = Recorder()
    data = Doubled("sample", num_labels=40, batch_size=4, val_size=0, steps_per_epoch=20, image_size=side,
                   pretrain_view=VIEW)  # fmt: skip
    trainer([seen], precision="64-true", limit_val_batches=0).fit(model, datamodule=data)
    assert len(seen.losses) == 20
    patch = 4 if side == 28 else 16
    for step, batch in enumerate(seen.batches):
        (x,) = batch["unlabeled"].crops
        visible = objective.draw_visible(x, batch["unlabeled"].seed)
        predicted = plain.predict(x, visible)
        losses = []
        for i in range(4):
            for place in set(range((side // patch) ** 2)) - set(visible[i].tolist()):
                row, column = divmod(place, side // patch)
                square = x[i, 0, patch * row : patch * row + patch, patch * column : patch * column + patch].flatten()
                if normalize:
                    square = (square - square.mean()) / (square.var() + 1e-6).sqrt()
                losses.append((predicted[i, place] - square).square().mean())
        loss = torch.stack(losses).mean()
        assert seen.losses[step] == pytest.approx(loss.item(), rel=1e-6), step
        parameters = [p for network in plain.networks for p in network.parameters()]
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(RATE * g)
    for mine, theirs in zip((model.encoder.net, objective.decoder), plain.networks, strict=True):
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], tensor, rtol=1e-5, atol=1e-7)


def test_torchvision_s_transformer_encodes_what_it_would_without_the_rest_of_the_image() -> None:
    encoder, objective = attached("vit", (3, 32, 32), hidden=0.5)
    x = images(2, (3, 32, 32))
    visible = objective.draw_visible(x, 1)
    net, places = encoder.eval().net, visible[0].tolist()
    tokens = net.conv_proj(x[:1]).flatten(2)[0].T + net.encoder.pos_embedding[0, 1:]
    start = net.class_token[0, 0] + net.encoder.pos_embedding[0, 0]
    kept = torch.stack([start, *(tokens[place] for place in places)])
    expected = net.encoder.ln(net.encoder.layers(kept[None]))[0, 0]
    torch.testing.assert_close(objective.decoder(encoder, x, visible)[1][0], expected)


def test_all_parameters_get_a_gradient_and_weights_keep_their_names() -> None:
    before = set(build_backbone("timm/test_convnext", (3, 64, 64))[0].state_dict())
    encoder, objective = attached("timm/test_convnext")  # has a norm after the average
    objective.compute(encoder, None, batch_of(images()), 0, 0).loss.backward()
    assert all(p.grad is not None for p in (*encoder.parameters(), *objective.parameters()))
    assert set(encoder.state_dict()) == before


def test_rows_show_what_was_hidden_and_predicted() -> None:
    encoder, objective = attached("resnet8", (1, 28, 28), hidden=0.5)
    x = images(3, (1, 28, 28))
    step = objective.compute(encoder, None, batch_of(x, 5), 0, 0)
    rows = [objective.decoder.split(row) for row in step.make_rows()]
    visible = objective.draw_visible(x, 5)
    for i in range(3):
        for place in range(49):
            assert torch.equal(rows[1][i, place], rows[0][i, place]) == (place in visible[i])
            assert torch.equal(rows[2][i, place], rows[0][i, place]) == (place in visible[i])
    hidden = [place for place in range(49) if place not in visible[0]]
    assert (rows[1][0, hidden] == 0.5).all()
    drawn, known = rows[2][0, hidden], rows[0][0, hidden]
    error = ((drawn - known) / (known.var(-1, keepdim=True) + 1e-6).sqrt()).square().mean()
    assert 0 < error < 4


def module(**settings: Any) -> SelfSupervisedModule:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": 10, "optimizer": lambda p: torch.optim.AdamW(p, 0.003), **settings}
    return SelfSupervisedModule(MAE(), "resnet8", SHAPE, **given)


def data(**settings: Any) -> ImageDataModule:
    return ImageDataModule("sample", **{"num_labels": 40, "batch_size": 64, "val_size": 60, "pretrain_view": VIEW,
                                        **settings})  # fmt: skip


def test_a_network_learns_to_predict_from_images_without_changes() -> None:
    seen = Recorder()
    unchanged = PretrainView(crop_scale=[1.0, 1.0], flip=False, jitter=0, gray=0, blur=0)
    run = trainer([seen])
    run.fit(module(), data(steps_per_epoch=60, pretrain_view=unchanged))
    assert sum(seen.losses[-5:]) < 0.85 * sum(seen.losses[:5])
    assert {"train/effective_rank", "val/effective_rank", "val/knn_accuracy"} <= set(run.callback_metrics)


def test_a_resumed_training_is_that_of_a_whole_one(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step == 5:  # inside an epoch
                trainer.save_checkpoint(tmp_path / "5.ckpt")

    settings: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 0}
    own = {"steps_per_epoch": 3, "batch_size": 8}
    whole, resumed = module(), module()
    trainer([Save()], **settings).fit(whole, data(**own))
    trainer(**settings).fit(resumed, data(**own), ckpt_path=str(tmp_path / "5.ckpt"), weights_only=True)
    assert not moved(state(whole), state(resumed))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("resnet8", {"hidden": 0}, "hidden is 0: give a share above 0 and below 1"),
        ("resnet8", {"hidden": 0.99, "patch": 32}, "hidden is 0.99 of 4 patches, which leaves 0 visible"),
        ("resnet8", {"patch": 5}, "patch is 5, but images have 64x64 pixels: give a common divisor"),
        ("resnet8", {"patch": 0}, "patch is 0: give a number of at least 1"),
        ("resnet8", {"decoder_depth": 0}, "decoder_depth is 0: give a number of at least 1"),
        ("timm/test_vit", {"patch": 8}, "patch is 8, but backbone 'timm/test_vit' has patches of 16 pixels"),
        ("timm/test_vit", {"decoder_width": 50}, "decoder_width is 50: give a multiple of 32"),
        ("mlp", {}, "backbone 'mlp' has no masked decoder, so MAE cannot train it: choose another one"),
    ],
)
def test_mistakes_are_explained(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        attached(name, **settings)
