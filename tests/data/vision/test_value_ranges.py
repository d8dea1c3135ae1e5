"""Images of more than 8 bits share one scale per data set, which the run reports and keeps."""

import csv
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from sft_lightning import ImageDataModule
from sft_lightning.__main__ import main
from sft_lightning.data.vision import image_files, value_ranges
from sft_lightning.data.vision.images import open_image
from sft_lightning.data.vision.pixel_scale import check_value_range
from sft_lightning.data.vision.sources import open_source
from sft_lightning.data.vision.value_ranges import UNKNOWN, ValueRanges, choose_ranges, measure_values
from sft_lightning.data.vision.write_shards import write_shards
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.data.conftest import make_png


def pixels_of(data: ImageDataModule, name: str) -> npt.NDArray[np.uint8]:
    """Return the middle of the first row of each image of the training split, by file name."""
    split = data.splits["labeled"]
    images: dict[str, torch.Tensor] = {
        Path(i).stem: data.inputs_of("labeled", [k])[0, 0] for k, i in enumerate(split.ids)
    }
    pixels: npt.NDArray[np.float32] = images[name].numpy()
    return (pixels * 255).round().astype(np.uint8)


def folder(root: Path, arrays: dict[str, Any]) -> Path:
    for k, (name, pixels) in enumerate(arrays.items()):
        path = root / "train" / ("a", "b")[k % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def open_data(source: Path, **settings: Any) -> ImageDataModule:
    data = ImageDataModule(str(source), image_size=8, channels=1, num_workers=0, val_size=0, test_size=0, **settings)
    data.setup("fit")
    return data


def make_uniform(value: float, kind: Any) -> npt.NDArray[Any]:
    return np.full((8, 8), value, kind)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (np.uint16, (0, 4000), (0.0, 4095.0)),
        (np.uint16, (0, 1000), (0.0, 1023.0)),
        (np.uint16, (1, 0), (0.0, 1.0)),
        (np.uint16, (0, 20000), (0.0, 65535.0)),
        (np.int32, (0, 70000), (0.0, 70000.0)),
        (np.int32, (-1000, 3000), (-1000.0, 3000.0)),
        (np.float32, (0, 0.9), (0.0, 1.0)),
        (np.float32, (0, 1.02), (0.0, 1.0)),
        (np.float32, (0, 250), (0.0, 255.0)),
        (np.float32, (-1, 1), (-1.0, 1.0)),
        (np.float32, (0, 3), (0.0, 3.0)),
        (np.float32, (7, 7), (0.0, 7.0)),
    ],
)
def test_one_range_holds_all_images(kind: Any, values: tuple[float, float], expected: tuple[float, float]) -> None:
    chosen = choose_ranges(measure_values(Image.fromarray(make_uniform(value, kind))) for value in values)
    assert chosen == (ValueRanges(floats=expected) if kind is np.float32 else ValueRanges(integers=expected))


@pytest.mark.filterwarnings("ignore:.*some values are NaN")
@pytest.mark.parametrize("odd", [None, np.nan, np.inf, -np.inf, 1.0001, 1.02, 1e30, -1e30])
def test_outlier_does_not_change_the_scale(odd: float | None, tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    if odd is not None:
        pixels[0, 0] = odd
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    assert abs(float(np.array(open_image(tmp_path / "x.tif", 1)).mean()) - 127.5) < 0.3


def test_image_without_finite_values_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(make_uniform(np.nan, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(OSError, match="it has no finite values"):
        open_image(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["{}.png", "{}.tif"])
def test_12_bit_images_share_one_scale(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path, {name.format(v): make_uniform(v, np.uint16) for v in (100, 2048, 4000, 3000)})
    data = open_data(source)
    assert [int(pixels_of(data, str(v))[4, 4]) for v in (100, 2048, 4000)] == [6, 128, 249]
    assert any("0 to 4,095 becomes 0 to 255" in str(finding) for finding in data.request.findings)


def test_32_bit_integers_do_not_saturate(tmp_path: Path) -> None:
    source = folder(tmp_path / "signed", {f"{v}.tif": make_uniform(v, np.int32) for v in (-1000, 0, 1000, 3000)})
    assert [int(pixels_of(open_data(source), v)[4, 4]) for v in ("-1000", "1000", "3000")] == [0, 128, 255]
    large = folder(tmp_path / "unsigned", {f"{v}.tif": make_uniform(v, np.int32) for v in (0, 1, 2, 3)})
    for path in large.rglob("*.tif"):  # Pillow writes signed ones only: another value and another tag
        signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))
        old, new = struct.pack("<i", int(path.stem)), struct.pack("<I", int(path.stem) * 10**9)
        path.write_bytes(path.read_bytes().replace(signed, unsigned).replace(old * 64, new * 64))
    data = open_data(large)
    assert data.geometry.ranges.integers == (0, 3e9)
    assert [int(pixels_of(data, v)[4, 4]) for v in "0123"] == [0, 85, 170, 255]


@pytest.mark.filterwarnings("ignore:.*some values are NaN")
def test_floats_share_one_scale_and_values_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    arrays = {f"{v}.tif": make_uniform(v, np.float32) for v in (0.2, 0.98, 1.02, 0.5)}
    arrays["0.5.tif"][0, 0] = np.nan
    data = open_data(folder(tmp_path, arrays))
    assert [int(pixels_of(data, v)[4, 4]) for v in ("0.2", "0.98", "1.02", "0.5")] == [51, 250, 255, 128]
    (finding,) = (finding for finding in data.request.findings if finding.kind == "not_finite")
    assert "1 of the images have values that are NaN" in finding.message
    assert [Path(name).name for name in finding.examples] == ["0.5.tif"]


def test_value_range_sets_the_scale(tmp_path: Path) -> None:
    source = folder(tmp_path, {f"{v}.png": make_uniform(v, np.uint16) for v in (100, 2048, 4000, 3000)})
    assert int(pixels_of(open_data(source, value_range=(1000, 3000)), "2048")[4, 4]) == round(1048 / 2000 * 255)
    for wrong in ((1, 1), (3, 2), (0, float("nan")), (0, float("inf"))):
        with pytest.raises(InputError, match=r"value_range is .*as in \[0, 4095\]"):
            check_value_range(wrong)


def test_checkpoint_keeps_the_scale_for_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their own scale, dark images would be bright; with the scale of their type, black."""
    monkeypatch.chdir(tmp_path)
    values = {f"{k}{v}.png": make_uniform(v + k, np.uint16) for k in range(8) for v in (600, 3400)}
    folder(Path("set"), values)
    Path("new").mkdir()
    for k in range(3):
        Image.fromarray(make_uniform(610 + k, np.uint16)).save(f"new/dark{k}.png")
        Image.fromarray(make_uniform(3300 + k, np.uint16)).save(f"new/bright{k}.png")
    data = {
        "source": "set", "image_size": 8, "channels": 1, "num_workers": 0, "batch_size": 8, "val_size": 2,
        "test_size": 2, "num_labels": "null",
    }  # fmt: skip
    words = [f"--data.init_args.{name}={value}" for name, value in data.items()]
    words += ["--run_name=run", "--trainer.accelerator=cpu", "--trainer.max_epochs=2"]
    assert main(["fit", f"--config={CONFIGS / 'quickstart' / 'fine_tune.yaml'}", *words]) == 0
    run = Path("lightning_logs/run/version_0")
    kept = torch.load(next(run.rglob("last.ckpt")), weights_only=True)["ImageDataModule"]
    assert kept == {"value_ranges": {"integers": [0.0, 4095.0]}}
    assert main(["predict", str(run), "new"]) == 0
    with (run / "predictions.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    label = next(name for name in rows["dark0.png"] if rows["dark0.png"][name] in ("a", "b"))
    assert {rows[f"dark{k}.png"][label] for k in range(3)} == {"a"}
    assert {rows[f"bright{k}.png"][label] for k in range(3)} == {"b"}


def test_scale_of_training_takes_precedence(tmp_path: Path) -> None:
    data = open_data(folder(tmp_path / "a", {f"{v}.png": make_uniform(v, np.uint16) for v in (1, 2, 3, 1000)}))
    other = open_data(folder(tmp_path / "b", {f"{v}.png": make_uniform(v, np.uint16) for v in (1, 2, 3, 4000)}))
    other.load_state_dict(data.state_dict())
    assert other.geometry.ranges == ValueRanges((0, 1023))
    asked = open_data(tmp_path / "b", value_range=(0, 4000))
    asked.load_state_dict(data.state_dict())
    assert asked.geometry.ranges.integers == (0, 4000)
    eight_bits = open_data(folder(tmp_path / "c", {f"{v}.png": make_uniform(v, np.uint8) for v in (1, 2, 3, 4)}))
    assert eight_bits.state_dict() == {}
    assert eight_bits.geometry.ranges == UNKNOWN


@pytest.mark.parametrize("size", [None, 4])
def test_shards_keep_the_scale_of_the_data_set(size: int | None, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    source = folder(tmp_path / "set", {f"{v}.png": make_uniform(v, np.uint16) for v in (100, 2048, 4000, 3000)})
    write_shards(open_source(str(source)), tmp_path / "shards", image_size=size)
    data = open_data(tmp_path / "shards")
    assert data.geometry.ranges == ValueRanges((0, 4095))
    assert [int(pixels_of(data, str(v))[4, 4]) for v in (100, 2048, 4000)] == [6, 128, 249]


def color_png(path: Path, highest: int) -> None:
    rows = b"".join(b"\0" + np.full(24, highest, ">u2").tobytes() for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make_png(header, zlib.compress(rows)))


@pytest.mark.parametrize(("highest", "is_said"), [((4000, 100, 50, 20), True), ((4000, 100, 60000, 20), False)])
def test_dark_16_bit_colors_are_reported(highest: tuple[int, ...], is_said: bool, tmp_path: Path) -> None:
    for k, value in enumerate(highest):
        color_png(tmp_path / "train" / "ab"[k % 2] / f"{k}.png", value)
    said = open_data(tmp_path).request.findings
    assert any("of which 15 of 255 is the largest" in str(finding) for finding in said) == is_said


def test_image_to_predict_with_nan_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "_shown", set())
    pixels = make_uniform(0.5, np.float32)
    pixels[0, 0] = np.nan
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.warns(UserWarning, match=r"image '.*x\.tif': some values are NaN"):
        open_image(tmp_path / "x.tif", ranges=ValueRanges(floats=(0, 1)))


def test_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    Image.fromarray(make_uniform(65535, np.uint16)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as file:
        assert file.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.array(open_image(tmp_path / "x.tif", 1)).max() == 0


@pytest.mark.filterwarnings("ignore:.*some values are NaN")
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("orientation", [1, 6])
def test_strips_equal_the_full_image(
    kind: Any, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = (np.random.default_rng(0).random((101, 79)) * 3000).astype(kind)
    if kind is np.float32:
        pixels[40, ::2] = np.nan
    path = tmp_path / ("x.png" if kind is np.uint16 else "x.tif")  # Pillow itself turns TIFFs
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    gray = np.asarray(open_image(path, 1, ranges=ValueRanges((0, 3000), (0, 3000))))
    expected = np.clip(np.nan_to_num(pixels.astype(float)) / 3000 * 255, 0, 255).round().astype(np.uint8)
    assert np.array_equal(gray, np.rot90(expected, -1) if orientation == 6 else expected)
    monkeypatch.setattr(value_ranges, "_SAMPLE", 700)
    facts = measure_values(Image.fromarray(pixels))
    each = pixels.reshape(-1)[:: pixels.size // 700].astype(float)
    low, high = np.quantile(each[np.isfinite(each)], (0.001, 0.999))
    assert facts[:5] == (kind is np.float32, np.nanmin(pixels), np.nanmax(pixels), low, high)
    monkeypatch.setattr(value_ranges, "_ROWS", 300)
    assert measure_values(Image.fromarray(pixels)) == facts
    again = open_image(path, 1, ranges=ValueRanges((0, 3000), (0, 3000)))
    assert np.array_equal(np.asarray(again), gray)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_large_image_is_converted_in_strips(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tracemalloc counts copies by NumPy, but not the image itself, which Pillow holds."""
    Image.fromarray(np.ones((2000, 2000), kind)).save(tmp_path / "x.tif")
    monkeypatch.setattr(value_ranges, "_ROWS", 2**14)
    monkeypatch.setattr(value_ranges, "_SAMPLE", 2**12)
    open_image(tmp_path / "x.tif", 1)  # imports
    tracemalloc.start()
    try:
        image_files.inspect_image(tmp_path / "x.tif", lambda mode: True)
        open_image(tmp_path / "x.tif", 1)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000  # of 8 or 16 million bytes
    finally:
        tracemalloc.stop()
