"""What serves every modality: mixing, and batches that say themselves what they hold."""

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from sft_lightning import FineTuneClassifier, ImageDataModule, SemiSupervisedModule
from sft_lightning.data.batches import Labeled
from sft_lightning.data.modality import MixedFeatures, mix_inputs
from sft_lightning.data.source import Examples, Source
from sft_lightning.data.storage import TensorStorage
from sft_lightning.losses.unlabeled import FixMatch, MixMatch, Reconstruction
from sft_lightning.losses.unlabeled.base import StrategyContext
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4)])
def test_mix_inputs_weighs_each_example_against_its_partner(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    order, share = torch.tensor([1, 2, 0]), torch.tensor([1.0, 0.75, 0.5])
    mixed = mix_inputs(x, order, share)
    for i, (partner, weight) in enumerate(zip(order.tolist(), share.tolist(), strict=True)):
        torch.testing.assert_close(mixed[i], weight * x[i] + (1 - weight) * x[partner])


def test_entries_of_a_list_are_mixed_as_features() -> None:
    spec = InputSpec("text", (6,), "int64", "words:50")
    model = SemiSupervisedModule(MixMatch(), backbone="fasttext", num_classes=3, input_spec=spec)
    ids = torch.randint(0, 50, (4, 6))
    x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    order, share = torch.tensor([1, 2, 3, 0]), torch.tensor([1.0, 0.75, 0.5, 0.6])
    mixed = mix_inputs(x, order, share)
    assert isinstance(mixed, MixedFeatures)
    plain, outputs = model.outputs(x), model.outputs(mixed)
    expected = share[:, None] * plain.features + (1 - share[:, None]) * plain.features[order]
    torch.testing.assert_close(outputs.features, expected)
    torch.testing.assert_close(outputs.logits, model.head(expected))


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


class ForTexts(FixMatch):
    """A strategy for texts alone."""

    modalities: ClassVar[tuple[str, ...] | None] = ("text",)


class ForBoxes(FixMatch):
    """A strategy for another task."""

    tasks: ClassVar[tuple[str, ...]] = ("detection",)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (ForTexts(), "ForTexts supports text inputs, and backbone 'mlp' takes image"),
        (ForBoxes(), "ForBoxes supports detection, and the task is classification"),
    ],
)
def test_a_strategy_refuses_inputs_and_tasks_that_it_does_not_support(strategy: FixMatch, message: str) -> None:
    settings: dict[str, Any] = {"backbone": "mlp", "num_classes": 2, "input_spec": (1, 8, 8)}
    SemiSupervisedModule(FixMatch(), **settings)
    with pytest.raises(InputError, match=message):
        SemiSupervisedModule(strategy, **settings)


def test_a_decoder_is_asked_for_where_the_backbone_has_none() -> None:
    class Plain(Encoder):
        modality = "image"

        def __init__(self, spec: InputSpec) -> None:
            super().__init__()
            self.net, self.num_features = nn.Flatten(), math.prod(spec.shape)

        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = self.net(x)
            return features

    encoder = Plain(InputSpec("image", (1, 2, 2)))
    encoder.name = "my.Plain"
    with pytest.raises(InputError, match=r"backbone 'my\.Plain' has no decoder"):
        Reconstruction().build(StrategyContext(2, 4, encoder))


@pytest.mark.parametrize(
    "given", [(1, 28), "image", 3, {"shape": [1, 2, 3]}, (0, 28, 28), {"modality": "a", "shape": 1}]
)
def test_a_wrong_input_spec_is_one_sentence(given: Any) -> None:
    with pytest.raises(InputError, match=r"^input_spec is .*: give the input_spec of the data"):
        FineTuneClassifier("mlp", 2, given)


def test_the_former_name_of_input_spec_still_works_and_must_agree_with_it() -> None:
    assert FineTuneClassifier("mlp", 2, image_shape=(1, 8, 8)).backbone.input_spec == InputSpec("image", (1, 8, 8))
    FineTuneClassifier("mlp", 2, InputSpec("image", (1, 8, 8)), image_shape=(1, 8, 8))
    with pytest.raises(InputError, match=r"image_shape is .* but input_spec is image of 1 x 9 x 9"):
        FineTuneClassifier("mlp", 2, (1, 9, 9), image_shape=(1, 8, 8))
