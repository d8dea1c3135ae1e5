"""What serves every modality: mixing, and batches that say themselves what they hold."""

from typing import Any

import pytest
import torch

from sft_lightning import FineTuneClassifier, ImageDataModule, SemiSupervisedModule
from sft_lightning.data.batches import Labeled
from sft_lightning.data.modality import mix_inputs
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.storage import TensorStorage
from sft_lightning.losses.unlabeled import FixMatch, Reconstruction
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.utils.errors import InputError


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4)])
def test_mix_inputs_weighs_each_example_against_its_partner(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    order, share = torch.tensor([1, 2, 0]), torch.tensor([1.0, 0.75, 0.5])
    mixed = mix_inputs(x, order, share)
    for i, (partner, weight) in enumerate(zip(order.tolist(), share.tolist(), strict=True)):
        torch.testing.assert_close(mixed[i], weight * x[i] + (1 - weight) * x[partner])


def test_inputs_of_two_dimensions_are_not_taken_for_features() -> None:
    model = FineTuneClassifier("mlp", num_classes=2, image_shape=(1, 8, 8)).eval()
    x, y = torch.rand(4, 64), torch.zeros(4, dtype=torch.long)
    assert model.batch_features(Labeled(x, y, y)).shape == (4, model.backbone.num_features)
    assert model.batch_features(Labeled(x, y, y, is_features=True)) is x


class Plain(Source):
    """A source of images as written for version 0.1."""

    name, class_names, image_shape = "plain", ("dark", "bright"), (1, 4, 4)

    def load(self) -> dict[str, Examples]:
        labels = torch.arange(40) % 2
        images = (labels * 200).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
        return {"train": Examples(TensorStorage(images), [str(i) for i in range(40)], labels)}


def test_a_source_that_derives_from_source_alone_gives_its_shape() -> None:
    class Data(ImageDataModule):
        opened_source = Plain()

    data = Data("plain", class_names=["bright", "dark"], on_leak="drop")
    data.setup("fit")
    assert data.image_shape == (1, 4, 4)
    assert data.labeled_counts().shape == (2,)


def test_a_strategy_refuses_inputs_that_it_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "modality", "text")
    settings: dict[str, Any] = {"backbone": "mlp", "num_classes": 2, "image_shape": (1, 8, 8)}
    SemiSupervisedModule(FixMatch(), **settings)
    with pytest.raises(InputError, match="Reconstruction supports image inputs, and backbone 'mlp' takes text"):
        SemiSupervisedModule(Reconstruction(), **settings)
