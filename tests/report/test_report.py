"""Pages of runs over the real command line: their numbers computed independently, and a real browser."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.paradigms.calibration import fit_temperature
from sft_lightning.report import one_class
from sft_lightning.tasks.classification_metrics import wilson
from sft_lightning.utils.environment import describe_machine
from tests.paradigms.helpers import cli
from tests.report.test_metrics import by_hand

VOID = {"meta", "img", "br", "wbr", "path", "use"}


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


def test_the_page_shows_the_results_of_the_run(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.init_args.num_labels=40", "--data.init_args.val_size=40"]  # few: their T is not that of the test
    run = fitted("run", *words)
    page = reported(run)
    assert f"Written: {run / 'report.html'}" in capsys.readouterr().out
    text = Parsed(page).text
    tested = cli("test", "fine_tune", f"--ckpt_path={run}", *words)
    model, data = tested.model.eval(), tested.datamodule
    metrics = {n: float(v) for n, v in tested.trainer.callback_metrics.items()}

    def seen(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(data.batches_of(name, torch.device("cpu")))
        with torch.no_grad():
            return torch.cat([model(b.x) for b in batches]), torch.cat([b.y for b in batches])

    (logits, y), (val_logits, val_y) = seen("test"), seen("val")
    accuracy = float((logits.argmax(1) == y).double().mean())
    assert accuracy == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    assert f"Test accuracy: {accuracy:.1%} of 2,000 images (95% interval {wilson(accuracy, 2000)[0]:.1%} to" in text
    assert f"most frequent class would give {int(y.bincount().max()) / 2000:.1%}." in text
    assert text.index("Test accuracy") < text.index("Results by class")
    assert 'class="lead split"' in page
    assert page.index("Confusion matrix of the test split") < page.index("Results by class")
    assert "This is the last iterate (step 36)." in text
    assert "cannot show whether unlabeled images helped" in text
    # The temperature by a search of its own.
    grid = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    t = float(grid[torch.stack([F.cross_entropy(val_logits.double() / g, val_y) for g in grid]).argmin()])
    said = re.search(r"calibration error is (\S+), or (\S+) at temperature (\S+) ", text)
    assert said is not None
    assert float(said[1]) == pytest.approx(metrics["test/calibration_error"], abs=6e-4)
    assert float(said[2]) == pytest.approx(by_hand(logits / float(said[3]), y), abs=4e-3)  # T is rounded on the page
    assert float(said[3]) == pytest.approx(t, abs=0.011)
    assert abs(t - fit_temperature(logits, y)) > 0.03  # so that it matters which split it is of
    recall = {data.class_names[c]: float((logits[y == c].argmax(1) == c).double().mean()) for c in range(10)}
    worst = min(recall, key=lambda name: recall[name])
    assert f"The recall is lowest for class {worst}: {recall[worst]:.1%}" in text
    counts = torch.bincount(y * 10 + logits.argmax(1), minlength=100).view(10, 10)
    for name, row in zip(data.class_names, counts.tolist(), strict=True):
        cells = re.search(rf'<tr><th title="{re.escape(name)}">[^<]*</th>(.*?)</tr>', page)
        assert cells is not None
        assert re.findall(r">(\d*)</td>", cells[1]) == [str(n or "") for n in row]
    # The largest loss is shown first, then the surest mistake that is not shown yet.
    losses = F.cross_entropy(logits, y, reduction="none")
    sure = torch.where(logits.argmax(1) != y, logits.softmax(1).max(1).values, -1)
    shown = losses.topk(6).indices.tolist()
    first = next(i for i in sure.topk(7).indices.tolist() if i not in shown)
    known = torch.cat([model.backbone(b.x) for b in data.batches_of("labeled", torch.device("cpu"))])
    for heading, i in (("Largest loss", shown[0]), ("Most confident of the others", first)):
        tile = re.search(r'class="tile">(.*?)</div></div>', page[page.index(heading) :])
        assert tile is not None
        assert tile[1].endswith(f">{data.splits['test'].ids[i]}")
        assert f">is {data.class_names[int(y[i])]}; loss {losses[i]:.2f}<" in tile[1]
        beside = re.findall(r'alt="([^"]*)"', tile[1])
        with torch.no_grad():
            like = F.cosine_similarity(model.backbone(data.inputs_of("test", [i])), known).topk(3).indices.tolist()
        names = [f"{data.class_names[int(data.splits['labeled'].labels[j])]}: " for j in like]
        assert beside[1:] == [name + data.splits["labeled"].ids[j] for name, j in zip(names, like, strict=True)]
    for phrase in ("lineage", "sft_lightning.FineTuneClassifier", "40 labels", "9,920 unlabeled"):
        assert phrase.lower() in text.lower()
    with (run / "label_next.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 20 == len({row["id"] for row in listed})
    place = {name: i for i, name in enumerate(data.splits["unlabeled"].ids)}
    chosen = data.inputs_of("unlabeled", [place[row["id"]] for row in listed])
    with torch.no_grad():
        q = model(chosen).softmax(1)
    assert [row["predicted"] for row in listed] == [data.class_names[k] for k in q.argmax(1).tolist()]
    entropy = -(q * q.log()).sum(1) / math.log(10)
    assert [float(row["uncertainty"]) for row in listed] == pytest.approx(entropy.tolist(), abs=1e-3)
    assert all(f"{row['order']}. maybe {row['predicted']}" in text for row in listed)
    # Nothing is fetched.
    assert not re.findall(r"""(?:src|href)=["'](?!data:image|#)""", page)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "<script" not in page
    assert len(page) < 3_000_000


def test_class_names_are_escaped(workdir: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(workdir / "images", {"train": 8, "test": 4})
    for part in ("train", "test"):
        (folder / part / "class_0").rename(folder / part / "<b>&amp;")
        (folder / part / "class_1").rename(folder / part / "'\"><i>")
    words = ["--data.init_args.source=images", "--data.init_args.image_size=28", "--data.init_args.num_labels=12"]
    run = fitted("run", *words, "--data.init_args.val_size=3", "--data.init_args.num_workers=0")
    page = reported(run)
    parsed = Parsed(page)
    assert not {"b", "onload"} & {*parsed.tags}
    assert "<b>&amp;" in parsed.text
    assert "'\"><i>" in parsed.text
    assert re.search(r"Chosen from \d+ unlabeled images", parsed.text)


def test_a_run_without_validation_test_or_unlabeled_images_has_a_page(workdir: Path) -> None:
    run = fitted("run", "--data.init_args.val_size=0", "--trainer.limit_val_batches=0")
    text = Parsed(reported(run)).text
    assert "A temperature was not fitted: it needs a validation split of its own." in text
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
    assert re.search(r"Validation accuracy: \S+% of 6 images \(95% interval", text)
    assert "The data has no test split" in text
    assert "folder has no metrics.csv" in text
    assert "What to label next" not in text
    assert not (run / "label_next.csv").exists()


def test_averaged_weights_are_evaluated(workdir: Path) -> None:
    words = ["--model.class_path=SemiSupervisedModule", "--model.init_args.strategy=PseudoLabel"]
    words += ["--model.init_args.ema_decay=0.9", "--data.init_args.unlabeled_ratio=1"]
    run = fitted("run", *words, "--trainer.log_every_n_steps=4")
    tested = cli("test", "fine_tune", "--config", str(run / "fit.yaml"), f"--ckpt_path={run}")
    accuracy = float(tested.trainer.callback_metrics["test/accuracy"])
    page = reported(run)
    assert f"Test accuracy: {accuracy:.1%} of 2,000 images" in page
    text = Parsed(page).text
    assert "Health of the pseudo-labels" in text
    with (run / "metrics.csv").open(newline="") as file:
        accepted = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "pseudo_labels/accepted"]
    assert f"accepted{accepted[0]:.3g}{accepted[-1]:.3g}share of the pseudo-labels" in text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone", "run 'gone' is neither a checkpoint nor a run"),
        ("empty", "run 'empty' is neither a checkpoint nor a run"),
        ("moved", "run 'moved/checkpoints/last.ckpt' has no fit.yaml"),
        ("damaged", "weights 'damaged/checkpoints/last.ckpt' cannot be read"),
    ],
)
def test_invalid_runs_give_one_sentence(
    workdir: Path, name: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    for folder in ("moved", "damaged"):
        (Path(folder) / "checkpoints").mkdir(parents=True)
        (Path(folder) / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 half")
    (Path("damaged") / "fit.yaml").write_text("{}")
    name = "moved/checkpoints/last.ckpt" if name == "moved" else name
    assert main(["report", name]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sft-lightning: ")
    assert sentence in last


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to look at the page with")
def test_a_browser_shows_the_page(workdir: Path) -> None:
    run = fitted("run")
    page = reported(run)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,2000"]
    picture = workdir / "page.png"
    address = (run / "report.html").resolve().as_uri()
    dom = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert "Test accuracy: " in dom.stdout
    # What was loaded is asked inside, at the width of a phone: a window is at least 500 wide, a frame is not.
    script = (
        "<script>const broken = []; addEventListener('error', e => broken.push(e), true);"
        "addEventListener('load', () => parent.postMessage(["
        "[...document.images].filter(i => !i.naturalWidth).length + broken.length,"
        "document.images.length, document.documentElement.scrollWidth, performance.getEntriesByType('resource')"
        ".filter(e => !e.name.startsWith('data:')).length].join(' '), '*'));</script>"
    )
    (workdir / "asked.html").write_text(page.replace("<title>", script + "<title>"), encoding="utf-8")
    frame = workdir / "frame.html"
    frame.write_text(
        "<script>addEventListener('message', e => document.title = e.data)</script>"
        '<iframe src="asked.html" width="390" height="2000" style="border:0"></iframe>'
    )
    asked = [*command, "--virtual-time-budget=9000", "--dump-dom", frame.as_uri()]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", said)
    assert found is not None
    lost, pictures, width, fetched = map(int, found.groups())
    assert (lost, fetched) == (0, 0)
    assert pictures > 40
    assert width <= 390
    subprocess.run([*command, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as image:
        assert len(set(image.convert("L").resize((100, 500)).tobytes())) > 30


@pytest.mark.slow
def test_grad_cam_is_shown_for_networks_with_feature_maps(workdir: Path) -> None:
    run = fitted("run", "--model.init_args.backbone=conv", "--trainer.max_epochs=2")
    page = reported(run)
    looked = page[page.index("Regions that support") : page.index("Map of the features")]
    assert looked.count("<img") == 24  # each beside where it looks
    assert looked.count(": right") == 6
    assert "mlp has no feature maps" in reported(fitted("flat"))


def test_an_autoencoder_shows_reconstructions(workdir: Path) -> None:
    done = cli("fit", "autoencoder", "--trainer.max_epochs=2")
    run = Path(str(done.trainer.log_dir))
    page = reported(run)
    text = Parsed(page).text
    assert "pre-trained without labels; the page shows the last iterate (step 12)" in text
    assert "Test accuracy" not in text
    assert 'class="lead split"' in page
    assert text.index("Reconstruction loss") < text.index("Reconstructions")
    x = done.datamodule.inputs_of("test", [*range(6)])
    with torch.no_grad():
        error = (done.model.eval()(x) - x).square().flatten(1).mean(1)
    for k, value in enumerate(error.tolist()):
        assert f"error {value:.4f}test/{k}" in text
    assert page.count("<img") == 12


def test_a_run_from_another_machine_with_a_damaged_log_has_a_page(workdir: Path) -> None:
    """Trained on GPUs that are not here; `report` of the same run twice is the same page."""
    run = fitted("run")
    config = (run / "fit.yaml").read_text()
    told = re.sub(r"accelerator: .*", "accelerator: gpu", config)
    told = re.sub(r"( +)devices: .*", r"\1devices: 2\n\1num_nodes: 2", told).replace("strategy: auto", "strategy: ddp")
    told = re.sub(r"\n +num_nodes: 1", "", told)
    (run / "fit.yaml").write_text(re.sub(r"precision: .*", "precision: 16-mixed", told))
    chain = json.loads((run / "lineage.json").read_text())
    assert chain[-1]["machine"] == describe_machine()
    chain[-1]["machine"].update({"processor": "One of theirs", "cards": "NVIDIA H200"})
    (run / "lineage.json").write_text(json.dumps(chain))
    for damaged in ("garbage\n1,2\n", "step,metric,value\n1,train/loss,x\n", "step,metric,value\n1,train/loss\n"):
        (run / "metrics.csv").write_text(damaged)
        text = Parsed(page := reported(run)).text
        assert "The run's folder has no metrics.csv, or one that cannot be read" in text
    assert re.search(r"duration[\d,]+ s between the first and the last log entry", text)
    assert "commandsft-lightning fit --config " in text
    assert "--run_name=run --trainer.max_epochs=6" in text
    assert re.search(r"hardware\S+ \S+, One of theirs, \d+ cores, NVIDIA H200; Python", text)
    assert main(["report", str(run), "--label_next=0", "--out=again.html"]) == 0
    again = Path("again.html").read_text(encoding="utf-8")
    assert "What to label next" not in again
    assert page.split("What to label next")[0] == again.split("Provenance")[0].rsplit("<h2>", 1)[0] + "<h2>"
    assert main(["report", str(run), "--label_next=-1"]) == 2


def test_a_checkpoint_of_an_earlier_step_is_named(workdir: Path) -> None:
    run = fitted("run")
    (best,) = (run / "checkpoints").glob("best-*.ckpt")
    assert main(["report", str(best)]) == 0
    assert f"This is the checkpoint {best.name} (step" in Parsed((run / "report.html").read_text()).text


def test_many_classes_give_a_list_of_confusions(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fitted("run")
    page = reported(run)
    assert page.count('<table class="matrix">') == 1
    assert page.index('<table class="matrix">') < page.index("Results by class")
    monkeypatch.setattr(one_class, "_MAX_LEAD_MATRIX", 9)
    page = reported(run)
    assert page.count('<table class="matrix">') == 1
    assert page.index("Recall of each class on the test split") < page.index('<table class="matrix">')
    monkeypatch.setattr(one_class, "_MAX_MATRIX", 9)
    page = reported(run)
    assert '<table class="matrix">' not in page
    assert 'class="lead split"' in page
    confused = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td><td>(\d+)</td></tr>", page)
    counts = [int(n) for _, _, n in confused]
    assert len(counts) == 9
    assert counts == sorted(counts, reverse=True)
    assert all(true != said for true, said, _ in confused)


def test_umap_draws_a_second_map_if_installed(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fitted("run")
    monkeypatch.setitem(sys.modules, "umap", None)
    assert "UMAP" not in reported(run)
    Path("umap.py").write_text(
        "class UMAP:\n    def __init__(self, **_): ...\n    def fit_transform(self, x): return x[:, :2]\n"
    )
    monkeypatch.delitem(sys.modules, "umap")
    monkeypatch.syspath_prepend(workdir)
    assert "UMAP, which keeps neighbors together" in reported(run)
    monkeypatch.delitem(sys.modules, "umap")
