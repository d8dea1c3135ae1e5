"""The page of a run, over the real command line: its figures calculated anew, its text escaped, a real browser."""

import csv
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.networks.backbones import Backbone
from sft_lightning.report.attention import grad_cam, last_map
from sft_lightning.report.facts import Judged, calibration_error, flat, temperature, to_label_next, wilson
from tests.paradigms.helpers import cli

VOID = {"meta", "img", "br", "path", "use"}


class Parsed(HTMLParser):
    """Text, tags, and whether each that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def fitted(name: str, *words: str) -> Path:
    return Path(str(cli("fit", "fine_tune", f"--run_name={name}", "--trainer.max_epochs=6", *words).trainer.log_dir))


def reported(run: Path) -> str:
    assert main(["report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_the_run_came_to(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fitted("run", "--data.init_args.num_labels=40")
    page = reported(run)
    assert f"Written: {run / 'report.html'}" in capsys.readouterr().out
    text = Parsed(page).text
    tested = cli("test", "fine_tune", f"--ckpt_path={run}", "--data.init_args.num_labels=40")
    model, data = tested.model.eval(), tested.datamodule
    metrics = {n: float(v) for n, v in tested.trainer.callback_metrics.items()}

    def seen(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(data.batches_of(name, torch.device("cpu")))
        with torch.no_grad():
            return torch.cat([model(b.x) for b in batches]), torch.cat([b.y for b in batches])

    (logits, y), (val_logits, val_y) = seen("test"), seen("val")
    accuracy = float((logits.argmax(1) == y).double().mean())
    assert accuracy == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    assert f"{accuracy:.1%} of 2,000 test images right" in text
    assert text.index("test images right") < text.index("Classes")
    # The temperature by a search of its own.
    grid = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    t = float(grid[torch.stack([F.cross_entropy(val_logits.double() / g, val_y) for g in grid]).argmin()])
    said = re.search(r"calibration error is (\S+), (\S+) after its temperature is set to (\S+) ", text)
    assert said is not None
    assert float(said[1]) == pytest.approx(metrics["test/calibration_error"], abs=6e-4)
    assert float(said[2]) == pytest.approx(calibration_error(logits / t, y), abs=4e-3)
    assert float(said[3]) == pytest.approx(t, abs=0.011)
    recall = {data.class_names[c]: float((logits[y == c].argmax(1) == c).double().mean()) for c in range(10)}
    worst = min(recall, key=lambda name: recall[name])
    assert f"class {worst} is found least often: {recall[worst]:.1%}" in text
    counts = torch.bincount(y * 10 + logits.argmax(1), minlength=100).view(10, 10)
    for name, row in zip(data.class_names, counts.tolist(), strict=True):
        cells = re.search(rf"<tr><th>{re.escape(name)}</th>(.*?)</tr>", page)
        assert cells is not None
        assert re.findall(r">(\d*)</td>", cells[1]) == [str(n or "") for n in row]
    # The surest mistake is shown first.
    p = logits.softmax(1)
    wrong = logits.argmax(1) != y
    first = int(torch.where(wrong, p.max(1).values, -1).argmax())
    tile = re.search(r'class="tile">(.*?)</div></div>', page[page.index("Its most confident mistakes") :])
    assert tile is not None
    assert data.splits["test"].ids[first] in tile[1]
    assert f"is {data.class_names[int(y[first])]}" in tile[1]
    assert tile[1].count("<img") == 4
    for words in ("lineage", "sft_lightning.FineTuneClassifier", "40 labels", "8,960 unlabeled"):
        assert words.lower() in text.lower()
    with (run / "label_next.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 24 == len({row["id"] for row in listed})
    assert {row["id"] for row in listed} <= {*data.splits["unlabeled"].ids}
    # Nothing is fetched.
    assert not re.findall(r"""(?:src|href)=["'](?!data:image|#)""", page)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "<script" not in page
    assert len(page) < 3_000_000


def test_text_of_the_user_is_text(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 8, "test": 4})
    for part in ("train", "test"):
        (folder / part / "class_0").rename(folder / part / "<b>&amp;")
    words = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.num_labels=12"]
    run = fitted("run", *words, "--data.init_args.val_size=3", "--data.init_args.num_workers=0")
    page = reported(run)
    parsed = Parsed(page)
    assert "b" not in parsed.tags
    assert "<b>&amp;" in parsed.text


def test_without_validation_test_or_unlabeled(workdir: Path) -> None:
    run = fitted("run", "--data.init_args.val_size=0", "--trainer.limit_val_batches=0")
    text = Parsed(reported(run)).text
    assert "no validation split beside it" in text
    whole = ["--data.init_args.num_labels=null", "--data.init_args.source=small", "--data.init_args.test_size=0"]
    for c in range(2):
        (workdir / "small" / "train" / str(c)).mkdir(parents=True)
        for k in range(10):
            pixels = np.random.default_rng(10 * c + k).integers(0, 100, (28, 28)) + 100 * c
            Image.fromarray(pixels.astype("uint8")).save(workdir / "small" / "train" / str(c) / f"{k}.png")
    shape = ["--data.init_args.image_size=28", "--data.init_args.channels=1", "--data.init_args.num_workers=0"]
    run = fitted("small", *whole, *shape, "--data.init_args.val_size=6")
    (run / "metrics.csv").unlink()
    text = Parsed(reported(run)).text
    assert "of 6 validation images right" in text
    assert "There is no test split" in text
    assert "There is no metrics.csv" in text
    assert "What to label next" not in text
    assert not (run / "label_next.csv").exists()


def test_averaged_weights_and_decoupled_heads_are_what_is_judged(workdir: Path) -> None:
    words = ["--model.class_path=SemiSupervisedModule", "--model.init_args.strategy=PseudoLabel"]
    words += ["--model.init_args.ema_decay=0.9", "--data.init_args.unlabeled_ratio=1"]
    run = fitted("run", *words, "--trainer.log_every_n_steps=4")
    tested = cli("test", "fine_tune", "--config", str(run / "fit.yaml"), f"--ckpt_path={run}")
    accuracy = float(tested.trainer.callback_metrics["test/accuracy"])
    page = reported(run)
    assert f"{accuracy:.1%} of 2,000 test images right" in page
    assert "health of the pseudo-labels" in page


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("gone", "run 'gone' is no checkpoint and no run"), ("encoder", "(AutoencoderModule) has no classifier")],
)
def test_bad_input_is_one_sentence(workdir: Path, name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "encoder":
        name = str(cli("fit", "autoencoder", "--trainer.max_epochs=1").trainer.log_dir)
    assert main(["report", name]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sft-lightning: ")
    assert sentence in last


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look at the page with")
def test_a_browser_shows_it(workdir: Path) -> None:
    run = fitted("run")
    reported(run)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,2000"]
    picture = workdir / "page.png"
    address = (run / "report.html").resolve().as_uri()
    dom = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert "test images right" in dom.stdout
    subprocess.run([*command, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as image:
        assert len(set(image.convert("L").resize((100, 500)).tobytes())) > 30


def test_where_a_convolutional_network_looks(workdir: Path) -> None:
    run = fitted("run", "--model.init_args.backbone=conv", "--trainer.max_epochs=2")
    page = reported(run)
    looked = page[page.index("Where it looks") : page.index("Map of the features")]
    assert looked.count("<img") == 12
    assert looked.count(": right") == 6
    assert "mlp has no map of places" in reported(fitted("flat"))


# --- by hand


def test_grad_cam_by_hand() -> None:
    """Features are the means of two maps, of which the class weighs the first: only where that is active it looks."""
    conv = torch.nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    net = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backbone = Backbone("conv", net, 2, (1, 4, 4)).requires_grad_(False).eval()
    module = last_map(backbone)
    assert module is net[1]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, :2] = 1.0
    x[0, 0, 2, 1] = 0.5
    head = {"weight": torch.tensor([[3.0, 1.0], [-1.0, 0.0]]), "bias": torch.zeros(2)}
    assert torch.equal(grad_cam(backbone, head, module, x, torch.tensor([0]))[0], x[0, 0])
    assert torch.equal(grad_cam(backbone, head, module, x, torch.tensor([1]))[0], torch.zeros(4, 4))


def test_wilson_by_hand() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(0.0, 10)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(0.2775, abs=1e-4)


def test_temperature_by_hand() -> None:
    # Two classes with log-odds of 2 where three of four are right: log(3) is what they should be.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    assert temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), abs=1e-4)


def test_what_to_label_next_is_uncertain_and_diverse() -> None:
    features = torch.tensor([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0], [-1.0, 0.0]])
    logits = torch.tensor([[0.1, 0.0], [0.0, 0.0], [0.2, 0.0], [9.0, 0.0]])
    pool = Judged("x", list("abcd"), features, logits, torch.full((4,), -1))
    # Known is near a and b: c and d are far, and d is certain, but the pool is small enough to hold it.
    assert to_label_next(pool, torch.tensor([[1.0, 0.02]]), 2) == [3, 2]
    # Of many only the most uncertain are looked at: d is the farthest, yet certain.
    many = Judged("x", [], features.repeat(10, 1), logits.repeat(10, 1), torch.full((40,), -1))
    assert {i % 4 for i in to_label_next(many, torch.tensor([[1.0, 0.02]]), 1)} == {1}
    assert {i % 4 for i in to_label_next(many, torch.tensor([[1.0, 0.02]]), 3)} >= {2}


def test_the_map_is_that_of_the_covariance() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.1, 2.0])
    places, share = flat(x)
    values = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)
    torch.testing.assert_close(places.var(0), values[:2])
    torch.testing.assert_close(share, values[:2] / values.sum())
    assert flat(x[:, :1])[0].shape == (50, 2)
