"""Programs for elsewhere, over the real command line: what is written answers as the run does, or is not written."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sft_lightning
from sft_lightning.__main__ import main
from sft_lightning.export import evaluate, programs
from sft_lightning.export.evaluate import NUM_COMPARED, ExportEvaluation
from sft_lightning.export.export import export
from sft_lightning.export.image_form import ImageForm, ImageProgram
from sft_lightning.tasks.classification import Classification
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, cli

PIXELS = torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NETWORKS = [
    "mlp",
    "conv",
    "wrn_28_2",
    "torchvision/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/tf_efficientnet_lite0",
]


def fitted(name: str, *words: str, config: str = "fine_tune") -> tuple[Path, Any]:
    run = cli("fit", config, f"--run_name={name}", *words)
    return Path(str(run.trainer.log_dir)), run.model.eval()


def answers(file: Path, images: Tensor) -> Tensor:
    if file.suffix == ".pt2":
        found: Tensor = torch.export.load(file).module()(images)
        return found
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def nothing_is_left(folder: Path) -> bool:
    kinds = ("*.onnx*", "*.pt2*", "*.json", "*.md", "*.part")
    return {file.name for kind in kinds for file in folder.glob(kind)} <= {"lineage.json", "run.json"}


def awkward(path: Path, seed: int) -> Path:
    """A wide color image with a transparent half; stored lying on its side where it is a JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((60, 44), Image.Resampling.BICUBIC)
    if path.suffix == ".png":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("onnx", ["backbone=conv", "mean=0.3", "std=0.4"]),
        ("pt2", ["backbone=conv", "tune=head"]),
        # channels_last, its BatchNorm frozen
        pytest.param("pt2", ["backbone=torchvision/resnet18", "tune=head"], marks=pytest.mark.slow),
    ],
    ids=["onnx", "pt2", "pt2 of ResNet-18"],
)
def test_the_code_of_the_card_says_what_predict_says(
    workdir: Path,
    write_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    words: list[str],
) -> None:
    write_folder(workdir / "images", {"train": 20, "val": 4, "test": 4})
    data = {"source": "images", "image_size": 32, "center_crop": 0.8, "background": "[10, 200, 90]", "num_workers": 0}
    data["channels"] = 1 if language == "onnx" else 3
    given = [f"--data.init_args.{name}={value}" for name, value in {**data, "num_labels": "null"}.items()]
    run = cli("fit", "fine_tune", "--run_name=run", *given, *(f"--model.init_args.{word}" for word in words))
    folder = Path(str(run.trainer.log_dir))
    assert main(["export", str(folder), f"--format={language}"]) == 0
    (workdir / "new").mkdir()
    pictures = [awkward(workdir / "new" / f"{k}.{kind}", k) for k, kind in enumerate(("png", "jpg"))]
    assert main(["predict", str(folder), str(workdir / "new")]) == 0
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    code = (folder / "model_card.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert "/ 1.0  #" not in code  # a temperature was found
    monkeypatch.chdir(folder)
    for picture, row in zip(pictures, rows, strict=True):
        shutil.copy(picture, "image.png")
        capsys.readouterr()
        exec(compile(code, "card", "exec"), {})
        name, chance = capsys.readouterr().out.split()
        assert name == row["predicted"]
        assert float(chance) == pytest.approx(max(float(v) for k, v in row.items() if k.startswith("p(")), abs=1e-5)


def test_an_onnx_file_says_what_it_is(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, model = fitted("run", "--model.init_args.mean=0.3")
    with caplog.at_level("INFO"):
        assert main(["export", str(run), "--format=onnx"]) == 0
    told = json.loads((run / "model.onnx.json").read_text())
    read = onnx.load(run / "model.onnx")
    onnx.checker.check_model(read)
    inside = {entry.key: entry.value for entry in read.metadata_props}
    parity = told.pop("parity")
    assert json.loads(inside["class_names"]) == told["class_names"] == model.class_names
    assert json.loads(inside["sft_lightning"]) == told
    assert [entry.version for entry in read.opset_import] == [told["opset"]] == [18]
    for value, end in ((read.graph.input[0], "input"), (read.graph.output[0], "output")):
        shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert [value.name, shape] == [told[end]["name"], told[end]["shape"]]
    assert told["input"] == {"name": "images", "type": "uint8", "range": [0, 255], "shape": ["batch", 1, 28, 28]}
    assert told["output"] == {"name": "logits", "type": "float32", "shape": ["batch", 10]}
    assert told["preprocessing"]["color"] == "gray"
    assert told["preprocessing"]["resize"]["size"] == [28, 28]
    assert str(Path(sft_lightning.__file__).parent).encode() not in (run / "model.onnx").read_bytes()
    assert (parity["images"], parity["of"], parity["equal_classes"]) == (NUM_COMPARED, "test", 1.0)
    assert parity["batch_sizes"] == [1, 3, 28, 32]
    assert 0 < parity["largest_difference"] < 1e-5
    said = (
        f"differs from PyTorch by {parity['largest_difference']:.2g} at most, 100.0% of the classes are equal, on 128"
    )
    assert f"Parity: model.onnx {said} test images in batches of 1, 3, 28 and 32 (onnxruntime " in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(answers(run / "model.onnx", PIXELS), model(PIXELS / 255), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="float"):
        answers(run / "model.onnx", PIXELS / 255)


AVERAGED = ["--model.class_path=SemiSupervisedModule", "--model.init_args.strategy=PseudoLabel"]
AVERAGED += ["--model.init_args.ema_decay=0.9", "--data.init_args.unlabeled_ratio=1", "--model.init_args.backbone=mlp"]
DECOUPLED = ["--model.class_path=DecoupledFeatureClassifier", "--model.init_args.feature_loss=SupCon"]
DECOUPLED += ["--model.init_args.backbone=mlp"]
STAGES = ["--model.init_args.coupling=two_stage", "--model.init_args.feature_epochs=1"]


@pytest.mark.parametrize(
    "words",
    [
        AVERAGED,
        pytest.param([*DECOUPLED, "--model.init_args.head=nearest_class_mean"], marks=pytest.mark.slow),
        [*DECOUPLED, "--model.init_args.head=tau_normalized"],
        pytest.param([*DECOUPLED, *STAGES, "--model.init_args.head=lws"], marks=pytest.mark.slow),
    ],
    ids=["averaged", "nearest_class_mean", "tau_normalized", "lws"],
)
def test_what_is_evaluated_is_what_is_exported(workdir: Path, words: list[str]) -> None:
    run, model = fitted("run", *words)
    file = export(str(run), format="pt2", measure_on=0)
    with torch.no_grad():
        x = PIXELS / 255
        expected = model.average(x) if words is AVERAGED else model(x)
        torch.testing.assert_close(answers(file, PIXELS), expected, rtol=1e-5, atol=1e-6)
        if words is AVERAGED:
            assert not torch.equal(expected, model.head(model.backbone(x)))


@pytest.mark.slow
def test_adapters_are_merged_and_weights_mixed(workdir: Path) -> None:
    start, _ = fitted("start")
    lora = ["--model.init_args.adapter=LoRA", f"--model.init_args.weights={start}", "--seed_everything=1"]
    run, model = fitted("run", *lora)
    with torch.no_grad():
        found = answers(export(str(run), format="pt2", measure_on=0), PIXELS)
        torch.testing.assert_close(found, model(PIXELS / 255), rtol=1e-5, atol=1e-6)
    file = export(str(run), format="pt2", wise=0.25, out="mixed.pt2", measure_on=0)
    assert json.loads(Path("mixed.pt2.json").read_text())["wise"] == 0.25
    weights = export(str(run), wise=0.25, out="mixed.safetensors", measure_on=0)
    mixed = sft_lightning.FineTuneClassifier("mlp", 10, SHAPE, weights=str(weights), head_weights=str(weights)).eval()
    with torch.no_grad():
        torch.testing.assert_close(answers(file, PIXELS), mixed(PIXELS / 255), rtol=1e-5, atol=1e-6)
    assert not torch.equal(answers(file, PIXELS), found)


@pytest.mark.parametrize("language", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_a_backbone_gives_features(workdir: Path, language: str) -> None:
    run, model = fitted("run", config="autoencoder")
    assert main(["export", str(run), "--part=backbone", f"--format={language}"]) == 0
    file = run / f"backbone.{language}"
    told = json.loads((run / f"{file.name}.json").read_text())
    assert told["output"] == {"name": "features", "type": "float32", "shape": ["batch", 32]}
    assert (told["parity"]["equal_classes"], told["parity"]["of"]) == (None, "test")
    with torch.no_grad():
        torch.testing.assert_close(answers(file, PIXELS), model.encoder(PIXELS / 255), rtol=1e-5, atol=1e-6)
    if language == "onnx":
        assert "class_names" not in [entry.key for entry in onnx.load(file).metadata_props]
    card = (run / "model_card.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-feature-extraction" in card
    assert "None was used: it learned to reconstruct" in card
    assert "Not measured at export." in card
    assert "classes" not in card.split("## Limits")[1]


@pytest.mark.slow
def test_a_program_that_differs_is_not_written(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = fitted("run")
    assert main(["export", str(run), "--format=pt2"]) == 0
    before = {file.name: file.read_bytes() for file in run.glob("model*")}
    own = programs._read_pt2
    for change, sentence in (
        (lambda y: y + 0.01 * (torch.arange(y.numel()).view_as(y) == 7), "differs from PyTorch by 0.01 at most"),
        (lambda y: y.flip(1), "of the classes are equal, on 128 test images"),
        (lambda y: y * torch.nan, "differs from PyTorch by nan at most"),
        (lambda y: y[:1], "cannot be written as pt2 (The size of tensor"),
    ):

        def changed(file: Path, change: Callable[[Tensor], Tensor] = change) -> Callable[[dict[str, Tensor]], Tensor]:
            run = own(file)
            return lambda given: change(run(given))

        monkeypatch.setattr(programs, "_read_pt2", changed)
        assert main(["export", str(run), "--format=pt2", "--out=new/model.pt2", "--measure_on=0"]) == 2
        assert sentence in capsys.readouterr().err
        assert not list(Path("new").iterdir())
    assert main(["export", str(run), "--format=pt2", "--measure_on=0"]) == 2  # what was written before stays
    assert {file.name: file.read_bytes() for file in run.glob("model*")} == before


class Fixed(ImageProgram):
    """A network that takes its batch size for a constant."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.reshape(2, *images.shape[1:]))


class Unknown(ImageProgram):
    """A network with an operation that ONNX does not have."""

    def forward(self, images: Tensor) -> Tensor:
        y = super().forward(images)
        made: Tensor = torch.linalg.lu_factor(y[:, :, None] * y[:, None])[0][:, 0]
        return made


@pytest.mark.parametrize(
    ("network", "language"),
    [
        (Fixed, "pt2"),
        pytest.param(Fixed, "onnx", marks=pytest.mark.slow),
        pytest.param(Unknown, "onnx", marks=pytest.mark.slow),
    ],
)
def test_a_network_that_cannot_be_written_is_reported(
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    network: type[ImageProgram],
    language: str,
) -> None:
    run, _ = fitted("run")
    monkeypatch.setattr(ImageForm, "program", network)
    assert main(["export", str(run), f"--format={language}", "--measure_on=0"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"sft-lightning: backbone 'mlp' cannot be written as {language} (")
    assert said.endswith(f"give --format {'pt2 or ' if language == 'onnx' else ''}safetensors")
    assert nothing_is_left(run)


def test_the_comparison_by_hand() -> None:
    images = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1)
    expected = torch.tensor([[0.0, 1.0, 0.9995], [4.0, -2.0, -1e4]])
    sizes: list[int] = []

    def compared(change: list[list[float]], with_head: bool = True, expected: Tensor = expected) -> dict[str, Any]:
        def run(given: dict[str, Tensor]) -> Tensor:
            batch = given["images"]
            sizes.append(len(batch))
            return (expected + torch.tensor(change))[batch.flatten().long()]

        form = ImageForm({"input_spec": (1, 1, 1)})
        task = Classification(expected.shape[1]) if with_head else None
        return programs._check_parity(run, form, ExportEvaluation("test", {"images": images}), expected, "pt2", task)

    nothing = [[0.0] * 3] * 2
    told = compared(nothing)
    assert (told["largest_difference"], told["equal_classes"], told["images"]) == (0, 1, 2)
    assert sorted({*sizes}) == told["batch_sizes"]
    assert min(sizes) == 1
    assert max(sizes) > 2
    # 0.001 of the output, and as much of the mean output, which the logit of a class without example does not raise.
    assert compared([[0.0009, 0, 0], [0.0049, 0, 9]])["largest_difference"] == 9
    for change in ([[0.0011, 0, 0], [0.0] * 3], [[0.0] * 3, [0.0051, 0, 0]]):
        with pytest.raises(InputError, match=r"100\.0% of the classes are equal.* more than is allowed"):
            compared(change)
    small = torch.tensor([[0.0, 0.01], [0.01, 0.0]])  # the mean is 0.005
    assert compared([[4e-6, 0], [0.0] * 2], False, small)["equal_classes"] is None
    with pytest.raises(InputError, match="more than is allowed"):
        compared([[6e-6, 0], [0.0] * 2], False, small)
    with pytest.raises(InputError, match="differs from PyTorch by nan at most"):
        compared([[math.nan, 0], [0.0] * 2], False, small)
    with pytest.raises(InputError, match=r"50\.0% of the classes are equal"):
        compared([[0.0, -0.0004, 0.0004], [0.0] * 3])  # another class, by little
    with pytest.raises(InputError, match="its training diverged"):
        compared(nothing, expected=expected * torch.nan)


def test_where_the_data_is_gone_or_has_changed_images_are_random(
    workdir: Path, write_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(workdir / "images", {"train": 12, "val": 3, "test": 3})
    words = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.channels=1"]
    run, _ = fitted("run", *words, "--data.init_args.num_workers=0", "--data.init_args.num_labels=9")
    spare = awkward(workdir / "new.png", 0)
    shutil.copy(spare, folder / "train" / "class_0")
    with caplog.at_level("INFO"):
        assert main(["export", str(run), "--format=pt2"]) == 0
    assert "on 128 random images in batches of 1, 3, 28 and 32" in caplog.text
    assert "which are random since split_file" in caplog.text
    assert "was made from other examples" in caplog.text
    told = json.loads((run / "model.pt2.json").read_text())
    assert told["parity"]["of"] == "random"
    assert "metrics" not in told
    shutil.rmtree(folder)
    assert main(["export", str(run), "--format=pt2"]) == 0
    told = json.loads((run / "model.pt2.json").read_text())
    assert told["parity"]["why_random"].startswith("source 'images' is neither a folder")
    card = (run / "model_card.md").read_text(encoding="utf-8")
    with (run / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["metric"] == "val/accuracy"][-1]
    assert f"on 9 images of the validation split: accuracy {float(last['value']):.4f}" in card
    assert "Not measured at export: source 'images' is neither a folder" in card
    assert "model-index" not in card
    assert "| class\\_0 | 3 | 3 | 3 |" in card


@pytest.mark.slow
def test_images_of_validation_or_training_where_there_is_no_test(workdir: Path) -> None:
    words = ["--data.init_args.source=small", "--data.init_args.test_size=0", "--data.init_args.num_labels=null"]
    words += ["--data.init_args.image_size=28", "--data.init_args.channels=1", "--data.init_args.num_workers=0"]
    for c in range(2):
        (workdir / "small" / "train" / str(c)).mkdir(parents=True)
        for k in range(8):
            awkward(workdir / "small" / "train" / str(c) / f"{k}.png", 10 * c + k)
    for val_size, kind, count in ((4, "validation", 4), (0, "labeled training", 16)):
        run, _ = fitted("run", *words, f"--data.init_args.val_size={val_size}")
        told = json.loads(Path(f"{export(str(run), format='pt2')}.json").read_text())
        assert (told["parity"]["of"], told["parity"]["images"]) == (kind, count)
        assert told.get("metrics", {}).get("split") == (kind if val_size else None)
        card = (run / "model_card.md").read_text(encoding="utf-8")
        assert ("There is no test split" in card) == bool(val_size)
        assert "model-index" not in card  # hubs rank by it
        assert ("Not measured at export." in card) == (not val_size)


def test_wrong_combinations_are_refused(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = fitted("run")
    encoder, _ = fitted("encoder", config="autoencoder")

    def refused(*words: str) -> str:
        assert main(["export", *words]) == 2
        assert nothing_is_left(run)
        return capsys.readouterr().err.splitlines()[-1]

    assert "a program takes images, a head takes features" in refused(str(run), "--part=head", "--format=onnx")
    assert "part is 'head' and format 'pt2'" in refused(str(run), "--part=head", "--format=pt2")
    assert "has no head: give --part backbone" in refused(str(encoder), "--format=onnx")
    assert "out 'a.safetensors' does not end in .onnx" in refused(str(run), "--format=onnx", "--out=a.safetensors")
    assert "out 'a.onnx' does not end in .safetensors" in refused(str(run), "--out=a.onnx")
    assert "format is 'onx' (did you mean 'onnx'?)" in refused(str(run), "--format=onx")
    assert "measure_on is -1" in refused(str(run), "--measure_on=-1")
    monkeypatch.setattr(programs, "MAX_BYTES", 1000)
    assert "one ONNX file holds 2: give --format pt2" in refused(str(run), "--format=onnx", "--measure_on=0")
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxscript" else name)
    said = refused(str(run), "--format=onnx")
    assert "(onnxscript is missing): pip install 'sft-lightning[export]'" in said
    assert main(["export", str(run), "--format=pt2", "--measure_on=0"]) == 0  # which needs no extra


def test_a_program_error_is_not_reported_as_missing_data(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = fitted("run")

    def broken(*words: str) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr(evaluate, "LoadedRun", broken)
    with pytest.raises(KeyError, match="a mistake"):
        export(str(run), format="pt2")


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_each_kind_of_network_is_exported(workdir: Path, network: str) -> None:
    size = 224 if "vit" in network else 64 if "/" in network else 28
    words = [f"--model.init_args.backbone={network}", f"--data.init_args.image_size={size}"]
    run, model = fitted("run", *words, "--data.init_args.batch_size=8", "--data.init_args.val_size=10")
    images = F.interpolate(PIXELS.float(), (size, size)).to(torch.uint8)
    assert isinstance(model, nn.Module)
    for language in ("onnx", "pt2"):
        assert main(["export", str(run), f"--format={language}", "--measure_on=0"]) == 0
        with torch.no_grad():
            expected = model(images / 255)
        torch.testing.assert_close(answers(run / f"model.{language}", images), expected, rtol=1e-4, atol=1e-5)
