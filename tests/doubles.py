"""Stand-ins for parts of a run, with no more than a test needs."""

from types import SimpleNamespace

from sft_lightning.audit.image_checks import ImageChecks
from sft_lightning.data.contract import FewLabelData
from sft_lightning.utils.inputs import InputSpec


class FakeData(SimpleNamespace):
    """A data module with the given attributes alone."""


FewLabelData.register(FakeData)


def make_image_checks(num_classes: int) -> ImageChecks:
    """Return the checks of images of this many classes, for statistics made by the test."""
    views = SimpleNamespace(inputs_name="pixels")
    data = FakeData(num_classes=num_classes, input_spec=InputSpec("image", (1, 28, 28)), views=views)
    return ImageChecks(data)  # type: ignore[arg-type]
