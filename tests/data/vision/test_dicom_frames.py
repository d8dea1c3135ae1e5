"""DICOM files of several frames: each is an example, in its own units, of one group, and files get one prediction."""

import csv
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sft_lightning import DetectionDataModule, ImageDataModule, SegmentationDataModule
from sft_lightning.__main__ import main
from sft_lightning.audit.image_checks import ImageChecks
from sft_lightning.data.digests import digest_files
from sft_lightning.data.frames import list_frames, remove_extension, split_path
from sft_lightning.data.vision.dicom_header import count_frames, find_patients
from sft_lightning.data.vision.image_files import inspect_image, open_image_file
from sft_lightning.data.vision.sources import open_source
from sft_lightning.data.vision.write_shards import encode_for_shard
from sft_lightning.training.callbacks.vision.pixel_predictions import name_files
from sft_lightning.training.frame_votes import name_votes, write_votes
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.spreadsheet import format_csv
from tests.data.vision.dicom_helpers import REAL, groups, pydicom, ramp, stack, write_slice


def values(path: Path, number: int | None) -> Any:
    with open_image_file(path if number is None else f"{path}#{number}") as image:
        return np.asarray(image)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_scans(folder: Path, patients: int = 12) -> Path:
    """Write a volume of 3 frames for each patient, of class a or b in turn."""
    for k in range(patients):
        write_slice(folder / "ab"[k % 2] / f"p{k}.dcm", stack(k, 100 + k, 200 + k), f"patient {k}")
    return folder


def patients_of(data: Any) -> dict[str, set[str]]:
    """Return the splits of each patient, who is the part of the name before `_`, `.` or `#`."""
    where: dict[str, set[str]] = {}
    for name, split in data.splits.items():
        for i in split.indices:
            part = "train" if name in ("labeled", "unlabeled") else name
            where.setdefault(re.split(r"[_.#]", Path(split.part.ids[i]).name)[0], set()).add(part)
    return where


# --- pixels


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"])
def test_each_frame_of_real_files_is_read(name: str) -> None:
    expected = pydicom.dcmread(REAL / name).pixel_array
    assert count_frames(REAL / name) == len(expected) == 15
    for number in (1, 8, 15):
        assert np.array_equal(values(REAL / name, number), expected[number - 1].astype(np.float32))


@pytest.mark.parametrize("bits", ["", "_16bit", "_32bit"])
def test_frames_of_color_are_read(bits: str) -> None:
    name = f"SC_rgb_rle{bits}_2frame.dcm"
    stored = pydicom.dcmread(REAL / name).pixel_array
    for number in (1, 2):
        expected = stored[number - 1] >> (8 * stored.dtype.itemsize - 8)
        assert np.array_equal(values(REAL / name, number), expected)


def test_frames_have_their_own_units_and_window(tmp_path: Path) -> None:
    own = groups(units=[(1, -1000), (2, 5)], windows=[(40, 400), ([50, 1], [100, 1])])
    path = write_slice(tmp_path / "a.dcm", stack(0, 0), PerFrameFunctionalGroupsSequence=own, RescaleSlope=9)
    assert np.array_equal(values(path, 1), ramp() - 1000)
    assert np.array_equal(values(path, 2), 2 * ramp() + 5)
    assert [inspect_image(Path(f"{path}#{k}")).window for k in (1, 2)] == [(-160, 240), (0, 100)]
    shared = groups(units=[(3, 1)], windows=[(10, 20)])
    path = write_slice(tmp_path / "b.dcm", stack(0, 7), SharedFunctionalGroupsSequence=shared)
    assert np.array_equal(values(path, 2), 3 * ramp(7) + 1)
    assert inspect_image(Path(f"{path}#2")).window == (0, 20)
    plain = write_slice(tmp_path / "c.dcm", stack(0, 7), RescaleSlope=2, RescaleIntercept=-1)
    assert np.array_equal(values(plain, 2), 2 * ramp(7) - 1)


def test_one_fraction_makes_all_frames_numbers_of_one_kind(tmp_path: Path) -> None:
    own = groups(units=[(1, 0), (0.5, 0)])
    path = write_slice(tmp_path / "a.dcm", stack(0, 0), PerFrameFunctionalGroupsSequence=own)
    assert [values(path, k).dtype for k in (1, 2)] == [np.float32, np.float32]
    large = write_slice(tmp_path / "b.dcm", stack(30_000), RescaleSlope=100_000)
    assert values(large, None).max() == pytest.approx(3.0063e9)  # integers of 32 bits would overflow


def test_deflated_files_and_bytes_are_read(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", stack(0, 7))
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    header.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert np.array_equal(values(tmp_path / "b.dcm", 2), ramp(7))


# --- names


def test_names_of_frames(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "scan", stack(0, 1), "")
    assert split_path(f"{path}#12") == (str(path), 12)
    assert split_path(f"{path}#0") == (f"{path}#0", None)
    (tmp_path / "cat #3").write_bytes(b"an own file")
    assert split_path(tmp_path / "cat #3") == (str(tmp_path / "cat #3"), None)
    assert [remove_extension(name) for name in ("a/b.dcm#3", "a/b.png", "a/b", "a.b/c#1")] == [
        "a/b#3", "a/b", "a/b", "a.b/c#1",
    ]  # fmt: skip
    assert name_files(["a/b.dcm#3", "a/b.dcm#4", "a/b.png"]) == ["a/b#3.png", "a/b#4.png", "a/b.png"]
    (tmp_path / "scan#2").write_bytes(b"another")
    with pytest.raises(InputError, match=re.escape("scan#2' has the name of a frame of")):
        list_frames(str(path), count_frames(path))


def test_digests_of_frames_differ_and_follow_the_file(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", stack(0, 1))
    before = digest_files([path, Path(f"{path}#1"), Path(f"{path}#2"), tmp_path / "none.dcm#1"])
    assert len({*before}) == 4
    assert before[3] is None
    os.utime(write_slice(path, stack(0, 2)), ns=(1, 1))
    after = digest_files([Path(f"{path}#1")])
    assert after[0] not in before


# --- sources


def test_a_folder_lists_frames_and_keeps_files_in_one_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_scans(tmp_path / "scans")
    (folder / "b" / "p1.dcm").rename(folder / "b" / "1.2.840.113619.2")
    (folder / "b" / "DICOMDIR").write_bytes((REAL / "rtplan.dcm").read_bytes())  # which every disc has
    data = ImageDataModule(str(folder), image_size=8, channels=1, num_labels=9, val_size=6, test_size=9)
    data.setup("fit")
    assert "12 files in" in caplog.text
    assert "hold 36 frames, each of which is an image; a split has all or none" in caplog.text
    assert "1 file in '" in caplog.text
    where = patients_of(data)
    assert len(where) == 12
    assert all(len(parts) == 1 for parts in where.values())
    assert {part for parts in where.values() for part in parts} == {"train", "val", "test"}
    one = data.splits["labeled"]
    names = [one.part.ids[i] for i in one.indices]
    starts = [100 * (int(name.split("#")[1]) - 1) + int((re.findall(r"p(\d+)", name) or [1])[0]) for name in names]
    low, high = data.geometry.ranges.integers or (0, 0)
    expected = [np.clip((ramp(start) - low) / (high - low), 0, 1) for start in starts]
    assert data.inputs_of("labeled", [*range(len(one))]).numpy()[:, 0] == pytest.approx(np.array(expected), abs=0.003)
    checks = ImageChecks(data)
    assert not [row for check in checks.find_strays([]) for row in check.rows]
    odd = {check.kind: check.rows for check in checks.find_odd([checks.measure("labeled")])}
    assert not odd["file_format"]
    assert not odd["extra_frames"]


@pytest.mark.parametrize("patient", ["", "anna"])
def test_a_file_without_a_patient_is_its_own_group(tmp_path: Path, patient: str) -> None:
    for k in range(4):
        write_slice(tmp_path / f"{k}.dcm", stack(k, 9 + k), patient, StudyInstanceUID="")
    part = open_source(str(tmp_path)).load()["train"]
    assert part.groups is not None
    assert len({*part.groups}) == (1 if patient else 4)
    assert part.groups[0] == part.groups[1]


def test_a_table_names_files_and_frames(tmp_path: Path) -> None:
    write_scans(tmp_path, 3)
    table = tmp_path / "table.csv"
    table.write_text("path,label\na/p0.dcm,a\nb/p1.dcm#2,b\nb/p1.dcm#3,\n")
    parts = open_source(str(table)).load()
    assert list(parts["train"].ids) == ["a/p0.dcm#1", "a/p0.dcm#2", "a/p0.dcm#3", "b/p1.dcm#2"]
    assert parts["train"].labels.tolist() == [0, 0, 0, 1]
    assert list(parts["unlabeled"].ids) == ["b/p1.dcm#3"]
    assert parts["unlabeled"].groups == [parts["train"].groups[3]]  # type: ignore[index]
    write_slice(tmp_path / "a" / "blank.dcm", stack(0, 1), "", StudyInstanceUID="")
    for lines, message in {
        "a/blank.dcm#1,a,train\na/blank.dcm#2,a,test": "group 'a/blank.dcm' is in train (line 2) and test (line 3)",
        "a/p0.dcm,a,\na/p0.dcm#2,b,": "'a/p0.dcm#2' is already on line 2",
        "a/p0.dcm#1,a,train\na/p0.dcm#2,a,test": "keep it in one split",
        "a/none.dcm#1,a,": "file 'a/none.dcm#1' does not exist",
        "../x.dcm#1,a,": "leads out of the folder",
    }.items():
        table.write_text(f"path,label,split\n{lines}\n")
        with pytest.raises(InputError, match=re.escape(message)):
            open_source(str(table))


@pytest.mark.parametrize("is_table", [False, True])
def test_named_groups_keep_patients_together(tmp_path: Path, is_table: bool) -> None:
    for name, patient in {"a/1": "anna", "b/2": "anna", "a/3": "ben", "b/4": "ben", "a/5": "eve", "b/6": "eve"}.items():
        write_slice(tmp_path / f"{name}.dcm", ramp(ord(name[0])), patient)
    given = {"a/1": "x", "b/2": "", "a/3": "", "b/4": "", "a/5": "y", "b/6": "z"}
    (tmp_path / "groups.csv").write_text("path,group\n" + "".join(f"{k}.dcm,{v}\n" for k, v in given.items()))
    if is_table:
        lines = "".join(f"{name}.dcm,{name[0]},{group}\n" for name, group in given.items())
        (tmp_path / "table.csv").write_text(f"path,label,group\n{lines}")
    source = open_source(str(tmp_path / "table.csv" if is_table else tmp_path))
    part = source.load()["train"]
    group = dict(zip(part.ids, part.groups or [], strict=True))
    assert group["a/1.dcm"] == group["b/2.dcm"] == "x"
    assert group["a/3.dcm"] == group["b/4.dcm"] not in ("", "x", "y", "z")
    (said,) = [str(one) for one in source.messages if "named groups" in str(one)]
    assert said.startswith("1 patient or file of frames is in several of the named groups, such as 'y' and 'z', which")


def test_frames_that_do_not_exist_are_named(tmp_path: Path) -> None:
    write_scans(tmp_path, 4)
    Image.new("L", (8, 8)).save(tmp_path / "c.png")
    for name, message in {
        "a/p0.dcm#9": "a/p0.dcm#9' cannot be read: it has no frame 9, but 3: give a number from 1 to 3",
        "c.png#1": "c.png#1' cannot be read: frames are read of DICOM, and it is PNG",
    }.items():
        (tmp_path / "t.csv").write_text(f"path,label\na/p2.dcm,a\nb/p1.dcm,b\n{name},a\n")
        with pytest.raises(InputError, match=re.escape(message)):
            ImageDataModule(str(tmp_path / "t.csv"), val_size=0, test_size=0).setup("fit")


# --- files that cannot be read


def test_damaged_volumes_say_why(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a" / "a.dcm", np.zeros((3, 32, 32)))
    write_slice(tmp_path / "b" / "b.dcm", ramp())
    whole, length = path.read_bytes(), b"(\0\x08\0IS\x02\0"
    for content, reason in {
        whole[:5000]: "a.dcm' cannot be read: its DICOM header cannot be read (it states 3 frames, which take 6,144",
        whole[:-1]: "a.dcm#3' cannot be read: its pixels cannot be decoded",
        whole.replace(length + b"3 ", b"(\0\x08\0IS\x0a\0" + b"2000000000"): "(it states 2,000,000,000 frames",
        whole.replace(length + b"3 ", length + b"x "): "a.dcm' cannot be read: its DICOM header cannot be read (",
    }.items():
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(reason)):
            ImageDataModule(str(tmp_path), val_size=0, test_size=0).setup("fit")
    assert count_frames(path) == 1


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "pip install pylibjpeg pylibjpeg-libjpeg"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "pip install pylibjpeg pylibjpeg-openjpeg"),
        ("MR_truncated.dcm", ""),
    ],
)
def test_a_remedy_is_named_where_pixels_are_compressed(name: str, remedy: str) -> None:
    with pytest.raises(OSError, match="its pixels cannot be decoded") as error:
        inspect_image(REAL / name, lambda mode: True)
    assert remedy in str(error.value)
    assert ("pip" in str(error.value)) == bool(remedy)


def test_volumes_of_nifti_are_named(tmp_path: Path, cli_error: Callable[..., str]) -> None:
    for name in ("a.nii", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b anything")
    argv = ["fit", "--model=FrozenFeatureClassifier", "--data=ImageDataModule"]
    message = cli_error(*argv, f"--data.source={tmp_path}")
    assert "1 .nii, 1 .nii.gz; of volumes, write their slices as DICOM, or as PNG of 16 bits" in message
    (tmp_path / "t.csv").write_text("path,label\nb.nii.gz,a\na.nii,b\n")
    with pytest.raises(InputError, match="volumes of NIfTI are not read: write their slices as DICOM"):
        ImageDataModule(str(tmp_path / "t.csv"), val_size=0, test_size=0).setup("fit")


# --- masks, boxes and unlabeled images


def write_masked(folder: Path, patients: int = 8) -> Path:
    """Write two slices and a volume of two frames for each patient, with masks of all but the last frame."""
    (folder / "masks").mkdir(parents=True)
    for k in range(patients):
        for s in range(2):
            write_slice(folder / "images" / f"p{k}_{s}.dcm", ramp(99 * k + s), f"patient {k}")
        write_slice(folder / "images" / f"p{k}_v.dcm", stack(99 * k + 5, 99 * k + 6), f"patient {k}")
        for stem in (f"p{k}_0", f"p{k}_1", f"p{k}_v#1"):
            mask = np.zeros((8, 8), np.uint8)
            mask[: k + 1] = 1
            Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    return folder


def test_patients_with_masks_stay_in_one_split(tmp_path: Path) -> None:
    folder = write_masked(tmp_path / "d")
    data = SegmentationDataModule(str(folder), image_size=8, channels=1, val_size=6, test_size=6, num_workers=0)
    data.setup("fit")
    where = patients_of(data)
    assert len(where) == 8
    assert all(len(parts) == 1 for parts in where.values())
    assert {part for parts in where.values() for part in parts} == {"train", "val", "test"}
    assert sum(name.endswith("_v.dcm#2") for name in data.splits["unlabeled"].ids) > 0
    split = data.splits["labeled"]
    batch = next(iter(data.batches_of("labeled", torch.device("cpu"))))
    names = [split.part.ids[split.indices[i]] for i in batch.indices.tolist()]
    assert any(name.endswith("#1") for name in names)
    for name, mask in zip(names, batch.y, strict=True):
        assert int(mask[:, 0].sum()) == int(re.findall(r"p(\d+)", name)[0]) + 1
    mask = folder / "masks" / "p0_v.png"
    Image.new("L", (8, 8)).save(mask)
    with pytest.raises(InputError, match=re.escape("add its number to the name, as in 'p0_v#1.png'")):
        SegmentationDataModule(str(folder)).setup("fit")


def test_masks_that_are_dicom_and_masks_of_whole_files_are_refused(tmp_path: Path) -> None:
    folder = write_masked(tmp_path / "d", 3)
    shutil.copy(REAL / "liver_1frame.dcm", folder / "masks" / "p0_0.dcm")
    (folder / "masks" / "p0_0.png").unlink()
    with pytest.raises(InputError, match="it is DICOM: write the mask of each frame as a PNG"):
        SegmentationDataModule(str(folder), class_names=["0", "1"]).setup("fit")
    table = folder / "t.csv"
    table.write_text("path,mask\nimages/p1_v.dcm,masks/p1_0.png\n")
    with pytest.raises(InputError, match=re.escape("give a line to each, as 'images/p1_v.dcm#1'")):
        SegmentationDataModule(str(table)).setup("fit")
    table.write_text("path,class,x1,y1,x2,y2\nimages/p1_v.dcm,cell,1,1,3,3\n")
    with pytest.raises(InputError, match=re.escape("and a box belongs to one of them")):
        DetectionDataModule(str(table)).setup("fit")
    table.write_text("path,class,x1,y1,x2,y2\nimages/p1_v.dcm#1,cell,1,1,3,3\nimages/p1_v.dcm#2,,,,,\n")
    data = DetectionDataModule(str(table), val_size=0, test_size=0)
    data.setup("fit")
    assert data.splits["labeled"].ids == ["images/p1_v.dcm#1", "images/p1_v.dcm#2"]


def test_unlabeled_images_of_patients_in_validation_and_test_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans = write_scans(tmp_path / "scans")
    for k in range(14):
        write_slice(tmp_path / "more" / f"p{k}.dcm", ramp(1000 + k), f"patient {k}")
    settings = {"image_size": 8, "channels": 1, "val_size": 6, "test_size": 6}
    data = ImageDataModule(str(scans), unlabeled_source=str(tmp_path / "more"), **settings)  # type: ignore[arg-type]
    data.setup("fit")
    where = patients_of(data)
    assert all(len(parts) == 1 for parts in where.values())
    held = sum(parts != {"train"} for parts in where.values())
    assert len(data.splits["unlabeled"]) == 14 - held
    assert f"{held} unlabeled examples were left out: their group is in validation or test" in caplog.text


# --- what is made of frames


def test_shards_hold_frames_alone(tmp_path: Path) -> None:
    write_slice(tmp_path / "scan.dcm", stack(0, 50))
    data = ImageDataModule(str(tmp_path), image_size=8, channels=1, val_size=0, test_size=0, value_range=(0, 200))
    data.setup("fit")
    split = data.splits["unlabeled"]
    content = encode_for_shard(split.part.storage, split.indices[1], None, data.geometry.ranges)
    (tmp_path / "shard.png").write_bytes(content)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shard.png")), (ramp(50) / 200 * 255).round())


@pytest.mark.parametrize("sets", [False, True])
def test_votes_are_means_over_frames(tmp_path: Path, sets: bool) -> None:
    path = tmp_path / "predictions.csv"
    name_votes(path).write_text("of an earlier call")
    made: list[list[object]] = [["path", "predicted", "p(=a)", "p(b)"]]
    path.write_text(format_csv([*made, ["x.png", "b", 0.1, 0.9]]))
    assert write_votes(path) == 0
    assert not name_votes(path).exists()
    made += [["v.dcm#1", "=a", 0.9, 0.1], ["v.dcm#2", "b", 0.2, 0.8], ["v.dcm#3", "b", 0.4, 0.6], ["x.png", "b", 0, 1]]
    made += [["=w#1", "=a;b" if sets else "=a", 0.8, 0.2], ["u#1", "", "nan", "nan"]]
    path.write_text(format_csv(made))
    assert write_votes(path, ";" if sets else None) == 2
    first, second = rows(name_votes(path))
    assert [*first.values()] == ["v.dcm", "3", "b" if sets else "'=a", "0.500000", "0.500000"]
    assert second["path"] == "'=w"
    assert second["predicted"] == ("'=a;b" if sets else "'=a")


@pytest.mark.slow
def test_frames_are_predicted_and_voted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scans(tmp_path / "scans", 8)
    write_slice(tmp_path / "new" / "v.dcm", stack(3, 103, 203), "new")
    write_slice(tmp_path / "new" / "single.dcm", ramp(9), "other")
    assert main(["fit", "--model=FrozenFeatureClassifier", "--model.backbone=pixels", "--data=ImageDataModule",
                 "--data.source=scans", "--data.image_size=8", "--data.channels=1", "--run_name=r"]) == 0  # fmt: skip
    run = Path("lightning_logs/r/version_0")

    def predict(source: str) -> list[Mapping[str, str]]:
        assert main(["predict", f"--ckpt_path={run}", f"--data.predict_source={source}"]) == 0
        return [*rows(run / "predictions.csv")]

    found = predict("new")
    assert [row["path"] for row in found] == ["single.dcm", "v.dcm#1", "v.dcm#2", "v.dcm#3"]
    (voted,) = rows(run / "predictions_by_file.csv")
    assert (voted["path"], voted["frames"]) == ("v.dcm", "3")
    mean = np.mean([float(row["p(a)"]) for row in found[1:]])
    assert float(voted["p(a)"]) == pytest.approx(mean, abs=2e-6)
    assert voted["predicted"] == ("a" if mean > 0.5 else "b")
    assert [row["path"] for row in predict("new/v.dcm#2")] == ["v.dcm#2"]
    assert rows(run / "predictions_1_by_file.csv") == [voted]
    assert [row["path"] for row in predict("new/single.dcm")] == ["single.dcm"]
    assert not (run / "predictions_by_file.csv").exists()


def test_patients_of_frames_are_those_of_their_file(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", stack(0, 1), "anna")
    first, second, third = find_patients([Path(f"{path}#1"), Path(f"{path}#2"), path]) or []
    assert first == second == third != ""
