"""Encoders by name and by class path."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sft_lightning import AutoencoderModule, FineTuneClassifier
from sft_lightning.networks.build import build_encoder, rebuild_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

SPEC = InputSpec("image", (1, 6, 6))


class Flat(Encoder):
    """One linear layer on the pixels."""

    modality = "image"

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.num_features = 4
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.net(x)
        return features

    def build_decoder(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 36), nn.Unflatten(1, (1, 6, 6)))


NAME = f"{__name__}.Flat"


def test_weights_of_an_own_encoder_travel_through_a_file(tmp_path: Path) -> None:
    module = AutoencoderModule(NAME, SPEC)
    module.save_encoder(tmp_path / "encoder.safetensors")
    again = FineTuneClassifier(NAME, 3, SPEC, weights=str(tmp_path / "encoder.safetensors"))
    x = torch.rand(2, 1, 6, 6)
    assert torch.equal(again.features(x), module.features(x))
    rebuilt = rebuild_encoder(tmp_path)
    assert type(rebuilt) is Flat
    assert rebuilt.input_spec == SPEC
    assert torch.equal(rebuilt(x), module.features(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module.Net", "cannot be imported"),
        ("torch.nn.NoSuchLayer", "cannot be imported"),
        ("torch.nn.Linear", "is not an Encoder: derive it from"),
    ],
)
def test_a_class_path_that_is_no_encoder_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder(name, SPEC)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weights": "default"}, "has no published weights"), ({"mean": 0.5}, "mean or std is set, which backbone")],
)
def test_settings_of_library_networks_are_refused_for_an_own_one(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder(NAME, SPEC, **settings)  # type: ignore[arg-type]


def test_an_encoder_of_another_modality_is_refused() -> None:
    with pytest.raises(InputError, match="takes image inputs, and the data has text"):
        build_encoder(NAME, InputSpec("text", (6,), "int64"))
    with pytest.raises(InputError, match="backbone 'mlp' is not known for spectrum inputs"):
        build_encoder("mlp", InputSpec("spectrum", (6,), "int64"))
