"""Inputs of one tensor and of several under names."""

from typing import Any

import pytest
import torch

from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import (
    Inputs,
    InputSpec,
    concatenate_inputs,
    count_inputs,
    get_device,
    map_inputs,
    select_inputs,
)

PLAIN = torch.arange(6.0).view(3, 2)
NAMED = {"ids": torch.tensor([[1, 2], [3, 0], [4, 5]]), "mask": torch.tensor([[1, 1], [1, 0], [1, 1]])}


def equal(one: Inputs, two: Inputs) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("x", [PLAIN, NAMED])
def test_parts_of_a_batch_join_to_the_whole(x: Inputs) -> None:
    assert count_inputs(x) == 3
    assert get_device(x) == torch.device("cpu")
    parts = [select_inputs(x, slice(0, 1)), select_inputs(x, [1, 2])]
    assert [count_inputs(part) for part in parts] == [1, 2]
    assert equal(concatenate_inputs(parts), x)
    assert equal(map_inputs(lambda tensor: tensor - 1, map_inputs(lambda tensor: tensor + 1, x)), x)


def test_a_spec_survives_its_record_and_reads_that_of_earlier_versions() -> None:
    spec = InputSpec("text", (256,), "int64")
    assert InputSpec.parse(spec.to_dict()) == spec
    assert InputSpec.from_settings({"input_spec": spec.to_dict()}) == spec
    assert InputSpec.from_settings({"image_shape": [1, 28, 28]}) == InputSpec("image", (1, 28, 28))
    assert InputSpec.from_settings({"backbone": "mlp"}) is None
    assert str(InputSpec("image", (1, 28, 28))) == "image of 1 x 28 x 28"


@pytest.mark.parametrize(
    ("modality", "one", "many"),
    [
        ("image", "1 image", "2,000 images"),
        ("text", "1 text", "2,000 texts"),
        ("audio", "1 recording", "2,000 recordings"),
        ("vector", "1 example", "2,000 examples"),
    ],
)
def test_examples_are_counted_by_the_noun_of_their_modality(modality: str, one: str, many: str) -> None:
    spec = InputSpec(modality, (8,))
    assert (spec.count(1), spec.count(2000)) == (one, many)
    assert (spec.noun, spec.plural) == (one.removeprefix("1 "), many.removeprefix("2,000 "))


@pytest.mark.parametrize(
    "given", [(1, 28), "abc", {"modality": "image"}, {"modality": "a", "shape": [0]}, {"shape": [3]}]
)
def test_what_is_no_spec_is_one_sentence(given: Any) -> None:
    with pytest.raises(InputError, match="give the input_spec of the data"):
        InputSpec.parse(given)
