from typing import Any

import pytest

from sft_lightning import ImageDataModule
from sft_lightning.data.vision.views import StrongView, WeakView
from sft_lightning.utils.errors import InputError


def test_a_view_may_be_a_mapping_in_python_as_in_yaml() -> None:
    given: Any = {"weak_view": {"flip": True, "crop_padding": 2}, "strong_view": {"operations": 1}}
    data = ImageDataModule("sample", **given)
    assert data.weak_view == WeakView(flip=True, crop_padding=2)
    assert data.strong_view == StrongView(operations=1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weak_view": {"flp": True}}, r"weak_view has 'flp' \(did you mean 'flip'\?\): give some of flip, "),
        ({"strong_view": "strong"}, "strong_view is 'strong': give a StrongView, or a mapping with operations"),
        ({"weak_view": {"rotation": "ten"}}, "weak_view is .*: give numbers"),
        ({"weak_view": None}, "weak_view is None: give a WeakView"),
    ],
)
def test_other_things_are_no_views(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ImageDataModule("sample", **given)
