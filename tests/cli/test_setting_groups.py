"""`--help` lists the settings of a class with many of them in groups, each setting once."""

import re

import pytest

from sft_lightning import (
    AnomalyDataModule,
    AnomalyDetector,
    AudioDataModule,
    DetectionDataModule,
    DistillModule,
    FineTuneClassifier,
    FineTuneDetector,
    FrozenFeatureClassifier,
    ImageDataModule,
    SegmentationDataModule,
    SelfSupervisedModule,
    SemiSupervisedDetector,
    SemiSupervisedModule,
    StudentTeacherDetector,
    TextDataModule,
)
from sft_lightning.__main__ import main
from sft_lightning.cli.registry import LINKED, list_parameters
from sft_lightning.cli.setting_groups import GROUPS, list_setting_groups

DATA = (
    ImageDataModule, TextDataModule, AudioDataModule, SegmentationDataModule, DetectionDataModule, AnomalyDataModule,
)  # fmt: skip
CLASSES = (
    *DATA,
    AnomalyDetector,
    StudentTeacherDetector,
    DistillModule,
    FineTuneClassifier,
    FineTuneDetector,
    FrozenFeatureClassifier,
    SelfSupervisedModule,
    SemiSupervisedDetector,
    SemiSupervisedModule,
)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_is_in_one_group(cls: type) -> None:
    names = [name for group in list_setting_groups(cls).values() for name in group]
    linked = () if cls in DATA else LINKED  # taken from the data
    assert sorted(names) == sorted({*list_parameters(f"sft_lightning.{cls.__name__}")} - {*linked})


@pytest.mark.parametrize(("option", "cls"), [("data", ImageDataModule), ("model", SemiSupervisedModule)])
def test_help_shows_groups(option: str, cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", f"--{option}.help", cls.__name__])
    shown = "\n" + capsys.readouterr().out
    titles = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert [title for title in titles if title in list_setting_groups(cls)] == list(list_setting_groups(cls))
    for title, names in GROUPS[cls.__name__].items():
        section = re.split(r"^\w.*:$", shown.split(f"\n{title}:\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
        if title != "Views":  # whose settings have groups of their own
            assert all(f"--{option}.{name} " in section for name in names)
            assert all(shown.count(f"  --{option}.{name} ") == 1 for name in names)
