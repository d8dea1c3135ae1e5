"""DICOM files: values in the units of the file, one scale for all, patients in one split, and damaged files by name."""

import csv
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.vision.dicom_header import find_patients
from sft_lightning.data.vision.image_files import inspect_image
from sft_lightning.data.vision.images import open_image
from sft_lightning.data.vision.value_ranges import ValueRanges
from sft_lightning.utils.errors import InputError
from tests.data.vision.dicom_helpers import REAL, pydicom, ramp, write_slice


def read(path: Path, low: float, high: float) -> Any:
    return np.asarray(open_image(path, 1, ranges=ValueRanges((low, high), (low, high))))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "rtdose_1frame.dcm"])
def test_values_have_the_units_of_the_file(name: str) -> None:
    header = pydicom.dcmread(REAL / name)
    units = header.pixel_array * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    low, high = float(np.quantile(units, 0.2)), float(np.quantile(units, 0.7))
    expected = np.clip((units - low) / (high - low) * 255, 0, 255).round()
    assert np.array_equal(read(REAL / name, low, high), expected)


def test_white_that_is_zero_padding_and_few_bits_are_read_right(tmp_path: Path) -> None:
    plain = read(write_slice(tmp_path / "a.dcm", ramp()), 0, 63)
    inverse = write_slice(tmp_path / "b.dcm", ramp(), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(inverse, 0, 63), 255 - plain)
    padded = ramp(100)
    padded[0] = -2000
    path = write_slice(tmp_path / "c.dcm", padded, PixelPaddingValue=-2000, RescaleSlope=2, RescaleIntercept=-1)
    with Image.open(path) as image:
        assert np.asarray(image)[0].tolist() == [2 * 108 - 1] * 8  # the smallest value that was measured
    padded[0] = [*range(-2004, -2000), *[-2000] * 4]
    for kind, black in {"MONOCHROME2": 108, "MONOCHROME1": 163}.items():
        path = write_slice(tmp_path / "e.dcm", padded, PhotometricInterpretation=kind)
        header = pydicom.dcmread(path)
        for keyword, value in (("PixelPaddingValue", -2000), ("PixelPaddingRangeLimit", -2004)):
            header.add_new(keyword, "US", 2**16 + value)  # as if it were unsigned
        header.save_as(path)
        with Image.open(path) as image:
            assert np.asarray(image)[0].tolist() == [black] * 8
    half = write_slice(tmp_path / "d.dcm", ramp(), RescaleSlope=0.5)
    with Image.open(half) as image:
        assert image.mode == "F"
    lowest, highest = open_image(REAL / "liver_1frame.dcm", 1).getextrema()
    assert (lowest, highest) == (0, 255)  # of 1 bit
    assert open_image(REAL / "SC_rgb_rle.dcm", 3).getpixel((0, 0)) == (255, 0, 0)


def test_a_window_that_all_files_state_is_their_scale(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def setup(*windows: tuple[int, int] | None) -> ImageDataModule:
        shutil.rmtree(tmp_path / "scans", ignore_errors=True)
        caplog.clear()
        for i, window in enumerate(windows):
            tags = {} if window is None else {"WindowCenter": [window[0], 9], "WindowWidth": [window[1], 9]}
            write_slice(tmp_path / "scans" / "ab"[i % 2] / f"{i}.dcm", ramp(-20), f"p{i}", **tags)
        data = ImageDataModule(str(tmp_path / "scans"), image_size=8, channels=1, val_size=0, test_size=0)
        data.setup("fit")
        return data

    data = setup((10, 40), (10, 40))
    assert data.inputs_of("labeled", [0]).flatten()[20].item() * 255 == pytest.approx(round(10 / 40 * 255))  # of 0
    assert "-10 to 30 becomes 0 to 255 in all of them" in caplog.text
    setup((10, 40), (20, 40))
    assert "the files state 2 different windows, such as -10 to 30 and 0 to 40" in caplog.text
    assert "-19.94 to 42.94 becomes 0 to 255" in caplog.text  # all but the outermost values
    setup((10, 40), None)
    assert "-19.94 to 42.94 becomes 0 to 255" in caplog.text


def test_a_patient_stays_in_one_split(tmp_path: Path) -> None:
    for patient in range(12):
        for k in range(5):
            kind = "ab"[(patient + (k > 3)) % 2]  # some have slices of both classes
            write_slice(tmp_path / "scans" / kind / f"{patient}_{k}.dcm", ramp(k * 70 + patient), f"patient {patient}")
    data = ImageDataModule(str(tmp_path / "scans"), image_size=8, channels=1, num_labels=20, val_size=10, test_size=15)
    data.setup("fit")
    where: dict[str, set[str]] = {}
    for name, split in data.splits.items():
        for i in split.indices:
            part = "train" if name in ("labeled", "unlabeled") else name
            where.setdefault(Path(split.part.ids[i]).name.split("_")[0], set()).add(part)
    assert len(where) == 12
    assert all(len(parts) == 1 for parts in where.values())
    assert {part for parts in where.values() for part in parts} == {"train", "val", "test"}


def test_a_patient_in_training_and_test_is_refused(tmp_path: Path, cli_error: Callable[..., str]) -> None:
    for split, patient in (("train", "anna"), ("train", "ben"), ("test", "anna")):
        for kind in "ab":
            write_slice(tmp_path / split / kind / f"{patient}.dcm", ramp(ord(kind)), patient)
    words = ["fit", "--model=FrozenFeatureClassifier", "--data=ImageDataModule", f"--data.source={tmp_path}"]
    assert "keep it in one split" in cli_error(*words)
    (tmp_path / "table.csv").write_text("path,label,split\ntrain/a/anna.dcm,a,train\ntrain/b/ben.dcm,b,train\n"
                                        "test/a/anna.dcm,a,test\n")  # fmt: skip
    words[-1] = f"--data.source={tmp_path / 'table.csv'}"
    assert "keep it in one split" in cli_error(*words)


def test_patients_are_not_named(tmp_path: Path) -> None:
    bare = write_slice(tmp_path / "IM0001", ramp(), "anna")
    uid = write_slice(tmp_path / "1.2.840.113619.2", ramp(), "anna")
    paths = [bare, write_slice(tmp_path / "b.dcm", ramp(), "anna"), write_slice(tmp_path / "c.dcm", ramp(), "ben")]
    blank = write_slice(tmp_path / "blank.dcm", ramp(), "")
    Image.new("L", (8, 8)).save(tmp_path / "d.png")
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    others = [blank, uid, tmp_path / "d.png", tmp_path / "broken.dcm"]
    first, same, other, study, by_uid, *rest = find_patients([*paths, *others]) or []
    assert first == same == by_uid != other
    assert "anna" not in first
    assert study not in ("", first, other)
    assert rest == ["", ""]
    assert find_patients([tmp_path / "d.png"]) is None
    hidden = write_slice(tmp_path / "e.PNG", ramp(), "anna")
    with pytest.raises(OSError, match=r"it is DICOM and named '.PNG': rename it"):
        inspect_image(hidden)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "its pixels cannot be decoded"),
        ("rtplan.dcm", "its DICOM header cannot be read (it describes no image)"),
        ("badVR.dcm", "its DICOM header cannot be read (invalid literal"),
        ("rtdose.dcm", "it holds 15 frames: name one, such as '"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "its pixels cannot be decoded"),
    ],
)
def test_files_that_cannot_be_read_say_why(name: str, reason: str) -> None:
    with pytest.raises(OSError, match=re.escape(reason)) as error:
        inspect_image(REAL / name, lambda mode: True)
    assert "\n" not in str(error.value)


def test_without_pydicom_a_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k, kind in enumerate("abab"):
        write_slice(tmp_path / kind / f"{k}.dcm", ramp(k))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"needs the extra 'dicom': pip install 'sft-lightning\[dicom\]'"):
        ImageDataModule(str(tmp_path), image_size=8).setup("fit")


def test_slices_are_learned_and_predicted(workdir: Path) -> None:
    for i in range(24):
        pixels = ramp(300 * (i % 2)) + np.random.default_rng(i).integers(0, 9, (8, 8))
        tags = {"RescaleIntercept": -100, "RescaleSlope": 1}
        write_slice(workdir / "scans" / ("low", "high")[i % 2] / f"{i}.dcm", pixels, f"p{i // 2}", **tags)
    shutil.copytree("scans/high", "new")
    words = ["--model=FrozenFeatureClassifier", "--data=ImageDataModule", "--data.source=scans", "--data.image_size=8"]
    assert main(["fit", *words, "--data.value_range=[-100, 300]", "--run_name=scans"]) == 0
    assert main(["predict", "lightning_logs/scans/version_0", "new"]) == 0
    with Path("lightning_logs/scans/version_0/predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["predicted"] for row in rows] == ["high"] * 12
