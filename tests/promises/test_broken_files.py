"""Bad images never pass silently: each is named once and counted, the policy is obeyed, and no file stops a reader."""

import csv
import ctypes
import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFile
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.vision.file_checks import find_damage
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.data.conftest import break_middle

PLACES = ("train/boot", "unlabeled", "val/boot", "test/boot")
RUN = "lightning_logs/run/version_0"
SKIP = "--data.init_args.on_bad_image=skip"
SEMI = [f"--config={CONFIGS / 'semi_supervised' / name}.yaml" for name in ("shared", "fixmatch")]
SMALL = [
    "--data.init_args.source=pictures", "--data.init_args.num_labels=null", "--data.init_args.image_size=16",
    "--data.init_args.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
]  # fmt: skip
SHORT = [
    *SEMI,
    *SMALL,
    "--run_name=run",
    "--data.init_args.batch_size=8",
    "--data.init_args.steps_per_epoch=3",
    "--trainer.max_epochs=1",
]
ANY = ""  # Pillow's words for a file that ends early or is spoiled within differ by format and version


class Corpus(NamedTuple):
    """Where it lies, and what is wrong with each broken file: by its path relative to that, as bytes."""

    folder: Path
    reasons: dict[bytes, str]


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64)).save(written, kind, **options)
    return written.getvalue()


def bomb(side: int) -> bytes:
    """A true PNG of one color, some thousand times as large when it is decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = side.to_bytes(4, "big")
    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", size + size + b"\1\0\0\0\0"), (b"IDAT", data), (b"IEND", b""))
    )


def spoil(folder: Path, pixels: np.ndarray, huge: bytes) -> dict[bytes, str]:
    """Puts one broken file of each kind into a folder: name to what is wrong."""
    found: dict[bytes, str] = {}

    def write(name: str | bytes, content: bytes, reason: str) -> Path:
        found[os.fsencode(name)] = reason
        path = folder / os.fsdecode(name)
        path.write_bytes(content)
        return path

    kinds = {"jpg": ("JPEG", {}), "png": ("PNG", {}), "progressive.jpg": ("JPEG", {"progressive": True})}
    for name, (kind, options) in kinds.items():
        content = encoded(pixels, kind, **options)
        for tenth in range(1, 10):
            write(f"{tenth}_tenths.{name}", content[: tenth * len(content) // 10], ANY)
    write("bomb.png", huge, "it has more than 179 megapixels")
    write("text.png", b"words\n" * 99, "it is not an image of a known format")
    write("nothing.webp", b"", "it has zero bytes")
    write("two\nlines\t.png", b"", "it has zero bytes")
    write(b"caf\xe9 \xff.png", b"", "it has zero bytes")
    write('"quoted", twice.gif', b"", "it has zero bytes")
    write("locked.png", encoded(pixels, "PNG"), "permission denied").chmod(0)
    break_middle(write("middle.png", encoded(pixels, "PNG"), ANY))  # is found when it is decoded
    for name, reason in (("folder.jpg", "it is a folder"), ("closed", "permission denied")):
        found[name.encode()] = reason
        (folder / name).mkdir()
    (folder / "closed").chmod(0)
    for name, to, reason in (("gone.jpg", "nowhere", "a broken link"), ("circle.png", "circle.png", "link to itself")):
        found[name.encode()] = f"it is {reason}" if to == "nowhere" else f"it is a {reason}"
        (folder / name).symlink_to(to)
    os.mkfifo(folder / "pipe.png")
    found[b"pipe.png"] = "it is a pipe"
    os.mkfifo(folder / "pipe")  # is not named like a picture
    return found


def oddities(folder: Path, pictures: Iterator[np.ndarray]) -> None:
    """Whole pictures that may be taken for broken ones."""
    (folder / "really_png.jpg").write_bytes(encoded(next(pictures), "PNG"))
    (folder / os.fsdecode(b"good \xfe.png")).write_bytes(encoded(next(pictures), "PNG"))
    (folder / "good\nlines.png").write_bytes(encoded(next(pictures), "PNG"))
    (folder / 'good, "quoted".png').write_bytes(encoded(next(pictures), "PNG"))
    frames = [Image.fromarray(next(pictures)) for _ in range(3)]
    frames[0].save(folder / "animation.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(next(pictures)).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(next(pictures).astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "frames.png").mkdir()
    (folder / "frames.png" / "1.png").write_bytes(encoded(next(pictures), "PNG"))
    (folder / "back").symlink_to(folder, target_is_directory=True)


@contextmanager
def bound_by_rights() -> Iterator[None]:
    """Root reads what it may not read; here it does not."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # capabilities(7), version 3
    assert libc.capget(head, sets) == 0
    kept = sets[0]
    sets[0] = kept & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, sets) == 0
    try:
        yield
    finally:
        sets[0] = kept
        assert libc.capset(head, sets) == 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, fashion: tuple[Tensor, Tensor]) -> Iterator[Corpus]:
    """Trousers and boots among which each part has all kinds of broken files; one test picture is trained on, too."""
    home = tmp_path_factory.mktemp("corpus")
    folder, reasons, huge = home / "pictures", {}, bomb(20_000)
    own = {c: iter(fashion[0][fashion[1] == c].numpy()) for c in (1, 9)}
    for place in (*PLACES, "train/trouser", "val/trouser", "test/trouser"):
        (folder / place).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(next(own[1 if place.endswith("trouser") else 9])).save(folder / place / f"{i}.png")
        if place in PLACES:
            oddities(folder / place, own[9])
            found = spoil(folder / place, next(own[9]), huge)
            reasons.update({f"{place}/".encode() + name: reason for name, reason in found.items()})
    shutil.copy(folder / "test" / "trouser" / "3.png", folder / "train" / "trouser" / "leak.png")
    with pytest.MonkeyPatch.context() as patch, bound_by_rights():
        patch.chdir(home)
        yield Corpus(folder, reasons)
    for path in folder.rglob("closed"):
        path.chmod(0o700)


@pytest.fixture(scope="module")
def run(corpus: Corpus) -> Path:
    """A training that leaves the broken ones out."""
    assert main(["fit", *SHORT, SKIP]) == 0
    return Path(RUN)


def spelled(name: bytes, one_line: bool) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return text.replace("\n", r"\n").replace("\t", r"\t") if one_line else text


def listed(path: Path) -> dict[str, str]:
    """What is in `skipped_images.txt`, each file once."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    rows = dict(line.split("\t") for line in lines)
    assert len(rows) == len(lines)
    return rows


def agree(told: dict[str, str], reasons: dict[bytes, str], prefix: str, one_line: bool) -> None:
    """The same files, with their reasons."""
    expected = {prefix + spelled(name, one_line): reason for name, reason in reasons.items()}
    assert told.keys() == expected.keys()
    assert not {name: said for name, said in told.items() if expected[name] not in said}
    assert all("\n" not in said and said for said in told.values())


def test_decoders_do_not_make_up_what_is_cut_off(corpus: Corpus) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    cut = [name for name in corpus.reasons if b"_tenths." in name]
    assert len(cut) == 4 * 27
    assert all(find_damage(corpus.folder / os.fsdecode(name)) for name in cut)


def test_a_training_names_them_all_once_and_goes_on(corpus: Corpus, run: Path) -> None:
    seen = {name: why for name, why in corpus.reasons.items() if name != b"test/boot/middle.png"}  # is not decoded
    agree(listed(run / "skipped_images.txt"), seen, "pictures/", one_line=True)
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        file.readline()
        rows = [row for row in csv.DictReader(file) if row["split"] != "left_out"]  # as the leak is
    used = {row["id"] for row in rows}
    assert not used & {spelled(name, False) for name in corpus.reasons if not name.endswith(b"middle.png")}
    for place in PLACES:  # nothing that is whole was lost
        odd = ("really_png.jpg", "good\nlines.png", r"good \xfe.png", 'good, "quoted".png', "animation.gif")
        assert {f"{place}/{name}" for name in (*odd, "print.jpg", "deep.png", "frames.png/1.png", "5.png")} <= used
    assert len(used) == len(rows) == 4 * (6 + 8 + 1) + 3 * 6  # with middle.png; the leak is dropped


def test_they_are_counted(corpus: Corpus, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    count, first = len(corpus.reasons), 'pictures/test/boot/"quoted", twice.gif, pictures/test/boot/1_tenths.jpg, '
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert main(["test", str(run), SKIP]) == 0
    assert f"Data: {count - 4} unreadable files are skipped: {first}" in caplog.text
    assert f"Data: {count - 3} unreadable files are skipped: {first}" in caplog.text  # test/boot/middle.png


@pytest.mark.parametrize("place", PLACES)
def test_the_first_one_stops_a_training_before_it_begins(
    place: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train/boot", "train/trouser", "val/boot", "val/trouser", "test/boot", "test/trouser", "unlabeled"):
        (tmp_path / "pictures" / part).mkdir(parents=True)
        for i in range(6):
            shutil.copy(corpus.folder / part / f"{i}.png", tmp_path / "pictures" / part)
    (tmp_path / "pictures" / place / "zero\n.png").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SHORT]) == 2
    assert capsys.readouterr().err == (
        f"sft-lightning: file 'pictures/{place}/zero\\n.png' cannot be read: it has zero bytes; replace or remove it, "
        "or set on_bad_image: skip\n"
    )
    assert not Path(RUN, "metrics.csv").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_predictions_are_of_all_that_can_be_read(
    workers: int, corpus: Corpus, run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(run), "pictures/unlabeled", f"--data.init_args.num_workers={workers}"]
    reasons = {name: why for name, why in corpus.reasons.items() if name.startswith(b"unlabeled/")}
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert main([*words, SKIP]) == 0
    agree(listed(run / "skipped_images.txt"), reasons, "pictures/", one_line=True)
    assert f"Data: {len(reasons)} unreadable files are skipped: " in caplog.text
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        names = [row["path"] for row in csv.DictReader(file)]
    odd = ["really_png.jpg", "good\nlines.png", r"good \xfe.png", 'good, "quoted".png', "animation.gif", "print.jpg"]
    assert sorted(names) == sorted([*odd, "deep.png", "frames.png/1.png", *(f"{i}.png" for i in range(6))])
    (run / "predictions.csv").unlink()
    capsys.readouterr()
    assert main([*words, "--data.init_args.on_bad_image=raise"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sft-lightning: file 'pictures/unlabeled/")
    assert said.count("\n") == 1
    assert not (run / "predictions.csv").exists()


def test_an_audit_lists_them_all(corpus: Corpus) -> None:
    words = ["audit", *SEMI, *SMALL, "--run_name=mine"]
    for strict, code in (([], 0), (["--strict"], 1)):  # a test picture is trained on
        assert main([*words, *strict]) == code
        with Path("lightning_logs/mine_audit/findings.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["finding"] == "images that cannot be read"]
        assert len(rows) == len(corpus.reasons)
        agree({row["id"]: row["detail"] for row in rows}, corpus.reasons, "", one_line=False)
        assert all(row["split"] in (row["id"].split("/")[0], "labeled") for row in rows)


def test_files_that_a_manifest_lists_and_that_are_none(
    write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [str(path) for path in sorted(write_folder(Path("good"), {"train": 4}).rglob("*.png"))]
    os.mkfifo("pipe.png")
    rows = [(name, name.split("/")[2]) for name in (*names, "good/train/gone\n.png", "pipe.png/train/class_0")]
    rows[-1] = ("pipe.png", "class_0")
    with Path("m.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((name, label if "gone" not in name else "") for name, label in rows)]
        )
    with pytest.raises(InputError, match=r"line 14: file 'good/train/gone\\n.png' does not exist below '.'"):
        ImageDataModule("m.csv")
    data = ImageDataModule("m.csv", on_bad_image="skip", val_size=2, test_size=2)
    data.setup("fit")
    assert data.bad.reasons == {
        r"good/train/gone\n.png": "it does not exist",
        "pipe.png": "it is a pipe, socket or device",
    }
    assert sum(len(split) for split in data.splits.values()) == 12
