"""The command over real images: what it finds, what it says, how it ends."""

import csv
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from sft_lightning import AutoencoderModule
from sft_lightning.__main__ import main
from tests.audit.conftest import FINE_TUNE, Told
from tests.conftest import Crop

Audited = Callable[..., Told]
LEAK = "test images that equal a labeled one"


def table(path: Path, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ("path", "label", "split")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def clean(workdir: Path, fashion: tuple[Tensor, Tensor]) -> Path:
    """Trousers and ankle boots, which no classifier takes for each other."""
    images, labels = fashion
    for kind, c in (("trouser", 1), ("boot", 9)):
        chosen = (labels == c).nonzero()[:, 0].tolist()
        for split, own in (("train", chosen[:12]), ("val", chosen[12:15]), ("test", chosen[15:18])):
            (workdir / "clean" / split / kind).mkdir(parents=True)
            for i in own:
                Image.fromarray(images[i].numpy()).save(workdir / "clean" / split / kind / f"{i}.png")
    return workdir / "clean"


def test_clean_data_says_so(clean: Path, audited: Audited, caplog: pytest.LogCaptureFixture) -> None:
    audit = audited(clean, "--strict")
    stages = [message for message in caplog.messages if message.startswith("Audit: ")]
    assert stages == [
        f"Audit: reading {clean} ...",
        "Audit: decoding 36 images ...",
        "Audit: looking for duplicates ...",
        "Audit: judging labels ...",
    ]
    assert audit.code == 0
    assert audit.rows == {}
    assert "The data is clean.\n" in audit.text
    assert "contaminated" not in audit.text
    topics = "refused settings, refused data, unreadable images, leaks into test or validation, duplicates, "
    topics += "label conflicts, missing or uneven classes, odd images, odd files, wrong labels"
    assert f"Looked for and not found: {topics}." in audit.text
    assert audit.about["contaminated"] is False
    assert audit.about["findings"] == []
    assert len(audit.about["not_found"]) == 41
    assert LEAK in audit.about["not_found"]
    assert audit.about["splits"] == {"labeled": 24, "unlabeled": 0, "val": 6, "test": 6}
    assert audit.about["classes"]["labeled"] == {"boot": 12, "trouser": 12}
    assert "sizes    28x28 (36); smallest 28x28, largest 28x28" in audit.text
    assert "36 of 36 are enlarged to 32 pixels a side" in audit.text
    assert "; logistic regression on the pixels is right in " in audit.text


def test_a_wrong_label_is_doubted(clean: Path, audited: Audited) -> None:
    wrong = sorted((clean / "train" / "boot").iterdir())[0]
    wrong.rename(clean / "train" / "trouser" / wrong.name)
    ((split, name, detail),) = audited(clean).rows["labels that may be wrong"]
    assert (split, name) == ("labeled", f"train/trouser/{wrong.name}")
    assert detail.startswith("'trouser', looks like 'boot', p 0.0")


def test_labels_are_judged_on_the_features_of_a_start(clean: Path, workdir: Path, audited: Audited) -> None:
    AutoencoderModule("mlp", image_shape=(1, 28, 28)).save_encoder("encoder.safetensors")
    words = ["--data.init_args.image_size=28", "--data.init_args.channels=1"]
    audit = audited(clean, *words, "--model.init_args.weights=encoder.safetensors")
    assert "; logistic regression on the features of mlp is right in " in audit.text


def test_labels_that_look_like_no_class_are_not_doubted(workdir: Path, crop: Crop, audited: Audited) -> None:
    for i in range(48):
        (workdir / "mixed" / "ab"[i // 2 % 2]).mkdir(parents=True, exist_ok=True)
        crop(i).save(workdir / "mixed" / "ab"[i // 2 % 2] / f"{i}.png")
    audit = audited("mixed", "--data.init_args.val_size=0.2", "--data.init_args.test_size=0.2")
    assert audit.rows == {}
    assert "labels   none is judged: logistic regression on the pixels is right in " in audit.text
    assert "Nothing was found; labels were not judged." in audit.text
    assert "wrong labels" not in audit.text
    assert "labels that may be wrong" not in audit.about["not_found"]


def test_tiny_bars_do_not_end_the_process(workdir: Path, audited: Audited) -> None:
    for k in range(60):  # where denormal numbers are zero, the search for near-duplicates never ends
        pixels = np.full((32, 32, 3), 255, np.uint8)
        pixels[:, 10:22] = (k * 3, 0, 0)
        if k >= 56:
            pixels[24:] = 0
        (workdir / "bars" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(workdir / "bars" / "ab"[k % 2] / f"{k}.png")
    audit = audited("bars", "--data.init_args.val_size=0.2", "--data.init_args.test_size=0.2")
    assert audit.code == 0
    assert sum(audit.about["splits"].values()) == 60
    assert "test images that nearly equal a labeled one" in audit.rows


def test_every_broken_file_is_named_and_the_rest_is_checked(
    photos: Path, crop: Crop, audited: Audited, capsys: pytest.CaptureFixture[str]
) -> None:
    here = photos / "train" / "china"
    (here / "zero.jpg").write_bytes(b"")
    (here / "text.png").write_text("no picture")
    crop(900).save(here / "cut.jpg")
    (here / "cut.jpg").write_bytes((here / "cut.jpg").read_bytes()[:1500])
    crop(902).save(here / "middle.png")
    content = bytearray((here / "middle.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (here / "middle.png").write_bytes(content)
    crop(904).save(here / "wrong.png", "JPEG")
    (here / "folder.jpg").mkdir()
    (here / "link.png").symlink_to("nowhere.png")
    (here / "link").symlink_to("nowhere")
    crop(906).save(here / "phone.thm", "JPEG")
    crop(907).save(here / "browser.jfif", "JPEG")
    crop(906).save(photos / "beside.jpg")
    (photos / "notes.txt").write_text("nothing to see")
    (photos / ".hidden.jfif").write_bytes((here / "phone.thm").read_bytes())
    shutil.copy(photos / "train" / "flower" / "2.png", photos / "test" / "flower" / "copy.png")
    audit = audited(photos)
    assert audit.code == 0
    assert sorted(audit.rows["images that cannot be read"]) == [
        ("train", "train/china/cut.jpg", audit.rows["images that cannot be read"][0][2]),
        ("train", "train/china/folder.jpg", "it is a folder"),
        ("train", "train/china/link.png", "it is a broken link"),
        ("train", "train/china/middle.png", "unrecognized data stream contents when reading image file"),
        ("train", "train/china/text.png", "it is not an image of a known format"),
        ("train", "train/china/zero.jpg", "it has zero bytes"),
    ]
    assert "truncated" in audit.rows["images that cannot be read"][0][2]
    assert "images that cannot be read (6): train/china/cut.jpg (image file is truncated" in audit.text
    assert " and 3 more. fit stops at the first (on_bad_image: raise): replace or remove them." in audit.text
    assert audit.rows["files whose extension does not match their content"] == [
        ("labeled", "train/china/wrong.png", "is JPEG")
    ]
    assert audit.rows["folders and links that are no images"] == [
        ("train", "train/china/link", "a broken link"),
    ]
    assert audit.rows["images that are not read"] == [
        (".", "beside.jpg", "JPEG"),
        ("train", "train/china/phone.thm", "JPEG"),
    ]
    assert audit.rows[LEAK] == [("test", "test/flower/copy.png", "equals train/flower/2.png")]
    skipping = audited(photos, "--data.init_args.on_bad_image=skip")
    assert skipping.rows == audit.rows
    assert "fit leaves them out (on_bad_image: skip): replace or remove them." in skipping.text


def test_nothing_but_broken_files(workdir: Path, audited: Audited) -> None:
    for kind in ("a", "b"):
        (workdir / "all" / kind).mkdir(parents=True)
        (workdir / "all" / kind / "1.png").write_bytes(b"")
    audit = audited("all", "--data.init_args.val_size=1")
    assert [row[1] for row in audit.rows["images that cannot be read"]] == ["a/1.png", "b/1.png"]
    assert "not looked at: fewer than 2 classes have 5 labels or more" in audit.text
    assert "labels that may be wrong" not in audit.about["not_found"]


def test_leaks_end_a_strict_audit_with_1(photos: Path, audited: Audited) -> None:
    assert audited(photos, "--strict").code == 0
    shutil.copy(photos / "train" / "flower" / "2.png", photos / "test" / "flower" / "copy.png")
    (photos / "unlabeled").mkdir()
    Image.open(photos / "train" / "china" / "1.png").save(photos / "unlabeled" / "near.jpg", quality=85)
    Image.open(photos / "test" / "china" / "0.png").save(photos / "unlabeled" / "again.webp", lossless=True)
    Image.open(photos / "val" / "china" / "0.png").save(photos / "unlabeled" / "light.jpg", quality=85)
    shutil.copy(photos / "test" / "china" / "1.png", photos / "val" / "china" / "twice.png")
    audit = audited(photos, "--strict")
    assert audit.code == 1
    assert audited(photos).code == 0
    assert audit.about["contaminated"] is True
    assert "The test or validation split is contaminated" in audit.text
    rows = {name: [row[:2] for row in own] for name, own in audit.rows.items() if "equal" in name}
    assert rows == {
        LEAK: [("test", "test/flower/copy.png")],
        "test images that equal an unlabeled one": [("test", "test/china/0.png")],
        "test images that equal a validation one": [("test", "test/china/1.png")],
        "validation images that nearly equal an unlabeled one": [("val", "val/china/0.png")],
        "labeled images that nearly equal an unlabeled one": [("labeled", "train/china/1.png")],
    }
    assert audit.rows["labeled images that nearly equal an unlabeled one"][0][2].startswith(
        "nearly equals unlabeled/near.jpg, difference 0."
    )
    lines = {line.split(" (")[0].removeprefix("- "): line for line in audit.text.splitlines()}
    assert lines[LEAK].endswith(" fit drops all from labeled (on_leak: drop).")
    assert lines["test images that equal a validation one"].endswith(" fit drops all from validation (on_leak: drop).")
    assert lines["test images that equal an unlabeled one"].endswith(" fit does not see them: remove one of each two.")
    flagged = {finding["finding"] for finding in audit.about["findings"] if finding["contaminates"]}
    assert flagged == set(rows) - {"labeled images that nearly equal an unlabeled one"}


@pytest.mark.parametrize(("split", "other"), [("val", "unlabeled"), ("val", "train"), ("test", "train")])
def test_a_near_duplicate_alone_is_a_leak(split: str, other: str, photos: Path, audited: Audited) -> None:
    place = photos / other if other == "unlabeled" else photos / other / "china"
    place.mkdir(exist_ok=True)
    Image.open(photos / split / "china" / "0.png").save(place / "near.jpg", quality=85)
    assert audited(photos, "--strict").code == 1


def test_duplicates_in_training_are_not_a_leak(photos: Path, audited: Audited) -> None:
    shutil.copy(photos / "train" / "china" / "0.png", photos / "train" / "china" / "copy.png")
    shutil.copy(photos / "test" / "china" / "0.png", photos / "test" / "china" / "copy.png")
    audit = audited(photos, "--strict")
    assert audit.code == 0
    assert audit.rows["labeled images that equal an earlier one of their split"] == [
        ("labeled", "train/china/copy.png", "equals train/china/0.png")
    ]
    assert "take labels from your budget" in audit.text
    assert audit.rows["test images that equal an earlier one of their split"] == [
        ("test", "test/china/copy.png", "equals test/china/0.png")
    ]
    assert "They count twice in every figure" in audit.text


def test_exact_copies_are_dropped_and_near_copies_reported(photos: Path, audited: Audited) -> None:
    shutil.copy(photos / "train" / "flower" / "2.png", photos / "test" / "flower" / "copy.png")
    Image.open(photos / "train" / "flower" / "3.png").save(photos / "test" / "flower" / "resaved.bmp")
    audit = audited(photos)
    does = "fit drops 1 from labeled (on_leak: drop); fit does not see the other 1: remove one of each two."
    assert does in audit.text
    # `fit` itself, which drops one of the 16.
    assert main(["fit", "--config", FINE_TUNE, "--data.init_args.source=photos", "--data.init_args.num_labels=null",
                 "--data.init_args.image_size=8", "--trainer.fast_dev_run=true"]) == 0  # fmt: skip
    (photos / "unlabeled").mkdir()
    Image.open(photos / "test" / "china" / "0.png").save(photos / "unlabeled" / "again.webp", lossless=True)
    audit = audited(photos, "--data.init_args.on_leak=raise")
    assert "(equals unlabeled/again.webp). fit does not see them: remove one of each two." in audit.text
    assert "fit stops here (on_leak: raise): remove one of each two." in audit.text
    assert audit.rows[LEAK][0][1] == "test/flower/copy.png"


def test_copies_of_different_labels_are_named_apart(photos: Path, audited: Audited) -> None:
    shutil.copy(photos / "train" / "flower" / "2.png", photos / "train" / "china" / "copy.png")
    Image.open(photos / "train" / "flower" / "3.png").save(photos / "test" / "china" / "near.jpg", quality=85)
    (photos / "unlabeled").mkdir()
    shutil.copy(photos / "train" / "flower" / "4.png", photos / "unlabeled" / "copy.png")
    audit = audited(photos)
    assert audit.rows["images that equal one of another class"] == [
        ("labeled", "train/flower/2.png", "'flower'; train/china/copy.png is 'china'")
    ]
    assert audit.rows["images that nearly equal one of another class"] == [
        ("test", "test/china/near.jpg", "'china'; train/flower/3.png is 'flower'")
    ]


def test_groups_in_several_splits_are_reported(
    photos: Path, crop: Crop, audited: Audited, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for k, path in enumerate(sorted(photos.glob("*/*/*.png"))):
        name, label = path.relative_to(photos).as_posix(), path.parent.name
        rows.append((name, label, path.parts[-3], f"patient {k}"))
    source = table(photos / "m.csv", rows, ("path", "label", "split", "group"))
    assert audited(source, "--strict").code == 0
    crop(990).save(photos / "more.png")
    rows += [("more.png", "", "", rows[0][3])]
    test = [row for row in rows if row[2] == "test"][1]
    train = next(row for row in rows if row[2] == "train")
    rows[rows.index(train)] = (*train[:3], test[3])
    table(source, rows, ("path", "label", "split", "group"))
    audit = audited(source, "--strict")
    assert audit.code == 1
    found = audit.rows["groups that are in two splits"]
    assert [(split, name) for split, name, _ in found] == [("test and train", "patient 0"), ("test and train", test[3])]
    assert found[0][2] == f"in test (line 2) and train (line {len(rows) + 1})"
    assert "fit stops at the first: manifest" in audit.text
    assert main(["fit", "--config", FINE_TUNE, f"--data.init_args.source={source}"]) == 2
    assert "group 'patient 0' is in" in capsys.readouterr().err


def test_groups_divided_by_a_split_file_are_reported(photos: Path, audited: Audited, workdir: Path) -> None:
    rows = [
        (path.relative_to(photos).as_posix(), path.parent.name, "", f"p{k // 4}")
        for k, path in enumerate(sorted(photos.glob("*/*/*.png")))
    ]
    source = table(photos / "m.csv", rows, ("path", "label", "split", "group"))
    small = ["--data.init_args.image_size=8", "--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=1"]
    words = ["--data.init_args.num_labels=null", "--run_name=torn", *small, "--data.init_args.num_workers=0"]
    assert main(["fit", "--config", FINE_TUNE, f"--data.init_args.source={source}", *words]) == 0
    file = workdir / "lightning_logs" / "torn" / "version_0" / "split.csv"
    assert audited(source, f"--data.init_args.split_file={file}", "--strict").code == 0
    lines = file.read_text().splitlines()
    k = next(k for k, line in enumerate(lines) if ",test," in line)
    name = lines[k].split(",")[0]
    file.write_text("\n".join([*lines[:k], lines[k].replace(",test,", ",labeled,"), *lines[k + 1 :]]) + "\n")
    audit = audited(source, f"--data.init_args.split_file={file}", "--strict")
    assert audit.code == 1
    group = next(row[3] for row in rows if row[0] == name)
    assert audit.rows["groups that are in two splits"] == [("test and training", group, f"in '{name}'")]


def test_all_faults_of_a_manifest_are_reported(photos: Path, audited: Audited) -> None:
    rows = [
        (path.relative_to(photos).as_posix(), path.parent.name, path.parts[-3])
        for path in sorted(photos.glob("*/*/*.png"))
    ]
    (photos / "d.jpg").mkdir()
    os.symlink("nowhere", photos / "l.jpg")
    (photos / "zero.png").write_bytes(b"")
    rows += [("gone.png", "china", "train"), ("d.jpg", "china", "train"), ("l.jpg", "china", ""), ("zero.png", "", "")]
    rows += [("./" + rows[0][0], "flower", "train"), (rows.pop(0)[0], "lamp", "test")]
    audit = audited(table(photos / "m.csv", rows))
    n = len(rows)
    assert audit.rows["lines without a file"] == [
        ("train", "gone.png", f"missing, line {n - 4}"),
        ("train", "d.jpg", f"a folder, line {n - 3}"),
        ("train", "l.jpg", f"a broken link, line {n - 2}"),
    ]
    assert audit.rows["images that cannot be read"] == [("unlabeled", "zero.png", "it has zero bytes")]
    assert audit.rows["lines that name an example again"] == [
        ("test", rows[-1][0], f"line {n + 1} repeats line {n}"),
    ]
    assert audit.about["splits"] == {"labeled": 17, "unlabeled": 0, "val": 6, "test": 5}


def test_all_faults_of_folders_are_reported(photos: Path, crop: Crop, audited: Audited) -> None:
    (photos / "train" / "empty").mkdir()
    (photos / "test" / "lamp").mkdir()
    (photos / "test" / "floor").mkdir()
    crop(901).save(photos / "test" / "lamp" / "1.png")
    crop(902).save(photos / "train" / "loose.png")
    audit = audited(photos)
    assert audit.rows["class folders without an image"] == [("train", "train/empty", "empty")]
    assert audit.rows["examples of a class without a training example"] == [
        ("test", "test/floor", "class 'floor'"),
        ("test", "test/lamp/1.png", "class 'lamp'"),
    ]
    assert audit.rows["images beside the class folders"] == [("train", "train/loose.png", "without a class")]
    assert "fit stops at the first: class folder" in audit.text
    assert [row[1] for row in audit.rows["classes without a labeled training image"]] == ["empty"]
    assert "images that are not read" not in audit.rows  # they are audit already


def test_classes_are_counted_and_uneven_ones_reported(photos: Path, crop: Crop, audited: Audited) -> None:
    (photos / "train" / "new").mkdir()
    for k in range(80):
        crop(300 + k).save(photos / "train" / "new" / f"{k}.png")
    (photos / "unlabeled").mkdir()
    crop(500).save(photos / "unlabeled" / "1.png")
    audit = audited(photos)
    assert audit.about["classes"] == {
        "labeled": {"china": 8, "flower": 8, "new": 80},
        "val": {"china": 3, "flower": 3, "new": 0},
        "test": {"china": 3, "flower": 3, "new": 0},
    }
    assert audit.about["splits"]["unlabeled"] == 1
    sentence = "neither validation nor test has an example of class 'new'"
    assert sentence in audit.about["messages"]
    assert {"kind": "missing_class", "message": sentence, "examples": ["new"]} in audit.about["data_findings"]
    assert [finding["message"] for finding in audit.about["data_findings"]] == audit.about["messages"]
    assert {finding["finding"]: finding["kind"] for finding in audit.about["findings"]} == {
        "classes without a validation image": "missing_class",
        "classes without a test image": "missing_class",
        "splits of uneven classes": "uneven_classes",
    }
    shown = [line.split() for line in audit.text.splitlines()]
    assert ["new", "80", "0", "0"] in shown
    assert ["all", "96", "1", "6", "6"] in shown
    assert audit.rows["classes without a validation image"] == [("val", "new", "")]
    assert audit.rows["classes without a test image"] == [("test", "new", "")]
    assert audit.rows["splits of uneven classes"] == [("labeled", "labeled", "80 of 'new', 8 of 'china'")]
    (photos / "train" / "new" / "79.png").unlink()
    assert "splits of uneven classes" not in audited(photos).rows


def test_a_label_budget_too_large_is_reported_and_all_labels_used(photos: Path, audited: Audited) -> None:
    audit = audited(photos, "--data.init_args.num_labels=500")
    assert audit.rows["settings that fit refuses"] == [
        ("", str(photos), "num_labels is 500, but only 16 labeled training examples are left after validation and test "
         "were held out: ask for fewer"),
    ]  # fmt: skip
    assert audit.about["splits"]["labeled"] == 16
    assert "settings that fit refuses" not in audited(photos, "--data.init_args.num_labels=4").rows
    shutil.rmtree(photos / "val")
    audit = audited(photos, "--data.init_args.val_size=500")
    assert audit.rows["settings that fit refuses"] == [
        ("", str(photos), "val_size asks for 500 of the 16 training examples: leave some to train on"),
    ]  # fmt: skip
    assert audit.about["splits"] == {"labeled": 16, "unlabeled": 0, "val": 0, "test": 6}


def test_other_errors_are_one_sentence(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--config", FINE_TUNE, "--data.init_args.source=nowhere", "--strict"]) == 2
    assert "sft-lightning: source 'nowhere' is neither a folder" in capsys.readouterr().err
    assert main(["audit", "--config", FINE_TUNE, "--stricct"]) == 2
    assert not (workdir / "lightning_logs").exists()


def test_unlabeled_inputs_of_another_source(photos: Path, crop: Crop, workdir: Path, audited: Audited) -> None:
    (workdir / "pool").mkdir()
    crop(700).save(workdir / "pool" / "1.png")
    (workdir / "pool" / "zero.png").write_bytes(b"")
    shutil.copy(photos / "test" / "china" / "0.png", workdir / "pool" / "2.png")
    audit = audited(photos, "--data.init_args.unlabeled_source=pool", "--strict")
    assert audit.code == 1
    assert audit.rows["test images that equal an unlabeled one"] == [("test", "test/china/0.png", "equals pool:2.png")]
    assert audit.rows["images that cannot be read"] == [("unlabeled", "pool/zero.png", "it has zero bytes")]
