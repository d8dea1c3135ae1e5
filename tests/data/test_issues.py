import json

import pytest
import torch

from sft_lightning import ImageDataModule
from sft_lightning.data.issues import KINDS, Finding, as_finding, collect_faults, parse_finding, report_fault
from sft_lightning.data.source import Examples
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.image_source import ImageSource
from sft_lightning.utils.errors import InputError


def test_finding_reads_as_its_sentence_and_keeps_the_first_20_examples() -> None:
    names = [f"{i}.png" for i in range(30)]
    finding = Finding("leak", "30 examples were dropped", names)
    assert f"Data: {finding}." == "Data: 30 examples were dropped."
    assert finding.examples == tuple(names[:20])
    assert finding == Finding("leak", "30 examples were dropped", tuple(names))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind of a finding is 'leeks': give one of note, leak, "):
        Finding("leeks", "x")  # type: ignore[arg-type]


def test_kinds_are_distinct_lowercase_identifiers() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert all(kind.isidentifier() and kind.islower() for kind in KINDS)


def test_finding_survives_json() -> None:
    finding = Finding("missing_class", "test has no example of class 'b\u00e9'", ["b\u00e9"])
    assert parse_finding(json.loads(json.dumps(finding.to_json()))) == finding


def test_sentence_of_an_earlier_version_gets_the_kind_of_its_place() -> None:
    assert parse_finding("x", "leak") == Finding("leak", "x")


def test_kind_of_a_later_version_becomes_that_of_its_place() -> None:
    later = {"kind": "later", "message": "x", "examples": ["a"]}
    assert parse_finding(later, "leak") == Finding("leak", "x", ["a"])


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        ["x"],
        {},
        {"kind": "leak", "message": "x"},
        {"kind": "leak", "examples": []},
        {"kind": ["leak"], "message": "x", "examples": []},
        {"kind": "leak", "message": 3, "examples": []},
        {"kind": "leak", "message": "x", "examples": "ab"},
        {"kind": "leak", "message": "x", "examples": [3]},
    ],
)
def test_other_values_are_not_findings(value: object) -> None:
    assert parse_finding(value) is None


def test_fault_is_raised_unless_faults_are_collected() -> None:
    with pytest.raises(InputError, match=r"^correct it$"):
        report_fault("odd lines", "train", "a", "line 1", "correct it")
    with collect_faults() as faults:
        report_fault("odd lines", "train", "a", "line 1", "correct it")
    assert [(fault.title, fault.name, fault.sentence) for fault in faults] == [("odd lines", "a", "correct it")]


class Noise(ImageSource):
    """Source that warns in a plain sentence and in a finding."""

    name = "noise"
    class_names = ("a", "b")
    image_shape = (1, 8, 8)
    messages = ("the sensor was replaced in March", Finding("wrong_label", "3 labels were guessed", ["0", "1", "2"]))

    def load(self) -> dict[str, Examples]:
        images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return {"train": Examples(TensorStorage(images), [str(i) for i in range(40)], torch.arange(40) % 2)}


class NoiseDataModule(ImageDataModule):
    """`ImageDataModule` with this source."""

    opened_source = Noise()


@pytest.mark.parametrize("class_names", [None, ["b", "a"]])
def test_sentences_of_a_source_become_notes(class_names: list[str] | None, caplog: pytest.LogCaptureFixture) -> None:
    data = NoiseDataModule(num_workers=0, class_names=class_names)
    data.setup("fit")
    assert data.request.findings == [
        Finding("note", "the sensor was replaced in March"),
        Finding("wrong_label", "3 labels were guessed", ["0", "1", "2"]),
    ]
    assert caplog.messages[:2] == ["Data: the sensor was replaced in March.", "Data: 3 labels were guessed."]
    assert as_finding(data.request.findings[1]) is data.request.findings[1]
