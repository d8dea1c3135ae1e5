"""Stand-ins for parts of a run, with no more than a test needs."""

from types import SimpleNamespace

from sft_lightning.data.contract import FewLabelData


class FakeData(SimpleNamespace):
    """A data module with the given attributes alone."""


FewLabelData.register(FakeData)
