"""Starts of `solve`: at which size each sees the images, what it may know, and what is found."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from sft_lightning import solve
from sft_lightning.__main__ import main
from sft_lightning.export.export import export
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.weights import write_weights
from sft_lightning.solver import plan, starts, trainings, trials
from sft_lightning.solver.find_starts import FoundStart, check_knowledge, find_starts
from sft_lightning.solver.labels import LabeledSource, read_source
from sft_lightning.solver.plan import Plan
from sft_lightning.solver.recipes import Recipe, fit, get_run
from sft_lightning.solver.space import Space
from sft_lightning.transfer.candidates import Candidate, read_chain
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

LIBRARY = "timm/test_resnet"  # timm's smallest


def write_start(path: Path, name: str = LIBRARY, side: int = 224) -> Path:
    encoder, _ = build_encoder(name, (3, side, side))
    write_weights(path, encoder.state_dict(), encoder.describe())
    return path


@pytest.fixture
def source(workdir: Path, write_folder: Callable[..., Path]) -> LabeledSource:
    write_folder(workdir / "images", {"train": 6, "unlabeled": 8}, classes=2)
    return read_source("images", workdir / "out", None, None, 0, "data")


def test_networks_of_a_library_get_the_largest_size_that_fits(
    source: LabeledSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "measure_seconds", lambda network, learns: network.input_spec.shape[-1])
    given = Candidate(weights=str(write_start(Path("weights.safetensors"))))
    count = 12 + 16
    for seconds, expected in ((0, 64), (96 * count, 96), (223 * count, 128), (math.inf, 224)):
        start = starts.load_start(given, source, seconds)
        assert start.backbone.input_spec.shape == (3, expected, expected)
        assert start.candidate.image_size == expected
        assert start.seconds == expected * count
    assert starts.load_start(Candidate(str(LIBRARY), "none", 48), source, 0).backbone.input_spec.shape[-1] == 48


def test_features_that_are_known_take_no_time(source: LabeledSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further call has time for the start that the first one computed, and for what is new in the folder."""
    given = FoundStart(Candidate(LIBRARY, str(write_start(Path("weights.safetensors"))), 48), "a file")
    monkeypatch.setattr(starts, "measure_seconds", lambda network, learns: 100.0)

    def plan_start(source: LabeledSource, minutes: float) -> tuple[trials.Trials, list[starts.Start]]:
        shutil.rmtree("out", ignore_errors=True)
        plan = Plan(Path("out/plan.json"), source.key, minutes)
        tried = trials.Trials(source, plan, "known", Path("out"), lambda line: None)
        return tried, tried.plan_starts([given])

    tried, chosen = plan_start(source, 9.0)
    assert not chosen
    assert "take 47 min" in tried.plan.stages[-1].dropped
    tried, (start,) = plan_start(source, 900.0)
    tried.judge_start(start)
    tried, chosen = plan_start(source, 9.0)
    assert len(chosen) == 1
    assert tried.plan.stages[-1].seconds == 0
    shutil.copy(next(Path("images/train").glob("*/*")), "images/unlabeled/copy.png")  # known by its content
    changed = min(Path("images/unlabeled").iterdir())
    Image.open(changed).transpose(Image.Transpose.ROTATE_180).save(changed)
    tried, chosen = plan_start(read_source("images", Path("out"), None, None, 0, "data"), 900.0)
    assert tried.plan.stages[-1].seconds == pytest.approx(100, abs=1)


def test_networks_of_one_size_keep_it(source: LabeledSource) -> None:
    given = Candidate(weights=str(write_start(Path("weights.safetensors"), "resnet8:flatten", 32)))
    start = starts.load_start(given, source, math.inf)
    assert start.backbone.input_spec.shape == (3, 32, 32)
    assert not start.is_large


def test_a_size_that_the_user_gave_is_kept(workdir: Path, write_folder: Callable[..., Path]) -> None:
    write_folder(workdir / "images", {"train": 6, "unlabeled": 8}, classes=2)
    source = read_source("images", workdir / "out", None, 80, 0, "data")
    given = Candidate(weights=str(write_start(Path("weights.safetensors"))))
    assert starts.load_start(given, source, math.inf).backbone.input_spec.shape == (3, 80, 80)


def test_a_view_has_the_same_examples_labels_and_folds(source: LabeledSource) -> None:
    view = source.view(InputSpec("image", (1, 20, 20)))
    assert view.data.input_spec.shape == (1, 20, 20)
    for name in ("labeled", "unlabeled", "test"):
        assert view.data.splits[name].ids == source.data.splits[name].ids
    assert view.labels.equal(source.labels)
    assert view.divisions is source.divisions
    assert view.key != source.key
    assert source.view(source.data.input_spec) is source
    argv = view.data_argv(0)
    assert "--data.image_size=20" in argv
    assert "--data.channels=1" in argv
    held = Path("out/splits/fold_0.csv").read_text()
    source.data_argv(0)
    assert Path("out/splits/fold_0.csv").read_text() == held


def test_a_start_of_another_size_is_judged_trained_and_delivered(source: LabeledSource) -> None:
    """The folder is read at 64 pixels, the weights at 48: recipes on them say so in their options."""
    lines: list[str] = []
    tried = trials.Trials(source, Plan(Path("out/plan.json"), source.key, 9.0), "sizes", Path("out"), lines.append)
    tried.judge_pixels()
    given = FoundStart(Candidate(LIBRARY, str(write_start(Path("weights.safetensors"))), 48), "as you asked")
    (start,) = tried.plan_starts([given])
    tried.judge_start(start)
    *_, result, graph, smoothed = tried.results
    assert smoothed.recipe.name == "smoothed logistic regression on weights.safetensors, 48 px"
    assert result.recipe.name == "logistic regression on weights.safetensors, 48 px"
    assert graph.recipe.name == "label spreading on weights.safetensors, 48 px"
    assert result.source.data.input_spec.shape == (3, 48, 48)
    assert not result.probabilities.isnan().any()
    # Other weights under the same name are judged anew.
    before = {path.name for path in Path("out/units").iterdir()}
    write_start(Path("weights.safetensors"))
    tried.judge_start(tried.plan_starts([given])[0])
    assert len({path.name for path in Path("out/units").iterdir()} - before) == 3


@pytest.mark.slow
def test_the_best_start_is_continued_on_the_pool_and_fine_tuned(
    source: LabeledSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a real run that starts from the one before it, on images of the start's own size."""
    monkeypatch.setattr(trials, "MIN_POOL", 10)
    monkeypatch.setattr(trials, "choose_steps", lambda *rest: 1)
    monkeypatch.setattr(trainings, "plan_halving", lambda *rest: (1, 3))
    monkeypatch.setattr(trainings, "PATIENCE", 100.0)  # on a busy machine, too
    lines: list[str] = []
    tried = trials.Trials(source, Plan(Path("out/plan.json"), source.key, 9.0), "more", Path("out"), lines.append)
    weights = str(write_start(Path("weights.safetensors")).absolute())
    tried.judge_start(starts.load_start(Candidate(weights=weights, image_size=48), source, 0))
    tried.judge_continued()
    pretrained = Path("lightning_logs/solve/more/continued/version_0")
    assert [link.get("file") or link["run"] for link in read_chain(str(pretrained))] == [weights, str(pretrained)]
    continued = tried.results[-2]
    assert continued.recipe.name == f"label spreading on {weights}, 48 px, continued on your images"
    assert continued.source.data.input_spec.shape == (3, 48, 48)
    assert tried.results[-3].recipe.uses_unlabeled  # logistic regression on features that saw the pool
    trainings.judge_trainings(tried)
    assert tried.results[-1].recipe.name.startswith("fine-tuning from ")
    (config,) = Path("lightning_logs/solve/more/trainings").glob("*/fold_0/version_0/fit.yaml")
    assert "image_size: 48" in config.read_text()
    assert "layer_decay: 0.75" in config.read_text()
    assert f"cache: {source.folder}/decoded" in config.read_text()  # where files are decoded once for all trainings
    assert [*Path("out/decoded").iterdir()]
    # Called again, it finds the run and the results.
    again = trials.Trials(source, Plan(Path("out/plan.json"), source.key, 9.0), "more", Path("out"), lines.append)
    again.judge_start(starts.load_start(Candidate(weights=weights, image_size=48), source, 0))
    again.judge_continued()
    trainings.judge_trainings(again)
    assert [result.recipe.name for result in again.results] == [result.recipe.name for result in tried.results]
    assert len([*Path("lightning_logs/solve/more").glob("**/version_*")]) == 1 + source.num_folds


@pytest.mark.parametrize("given", [pytest.param(None, marks=pytest.mark.slow), 128])
def test_trainings_see_smaller_images_where_larger_ones_take_too_long(
    given: int | None, workdir: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(workdir / "images", {"train": 2, "unlabeled": 8}, classes=2)  # two folds
    source = read_source("images", workdir / "out", None, None, 0, "data")
    monkeypatch.setattr(trainings, "measure_seconds", lambda net, learns: 1e-6 if net.input_spec.shape[-1] < 100 else 9)
    monkeypatch.setattr(plan, "TRAINING_STEPS", (3,))
    monkeypatch.setattr(trainings, "START_SECONDS", 0.1)
    monkeypatch.setattr(trainings, "PATIENCE", 1000.0)  # on a busy machine, too
    lines: list[str] = []
    tried = trials.Trials(source, Plan(Path("out/plan.json"), source.key, 9.0), "small", Path("out"), lines.append)
    candidate = Candidate(weights=str(write_start(Path("weights.safetensors")).absolute()), image_size=given)
    tried.judge_start(tried.plan_starts([FoundStart(candidate, "as you asked", is_given=given is not None)])[0])
    before = len(tried.results)
    trainings.judge_trainings(tried)
    if given is not None:  # which the user wants
        assert len(tried.results) == before
        assert f"fine-tuning from {candidate}: it takes --minutes" in lines[-1]
        return
    result = tried.results[-1]
    assert "weights.safetensors, 96 px (3 steps)" in result.recipe.name
    assert result.source.data.input_spec.shape == (3, 96, 96)
    assert len(result.space.pool) == len(source.data.splits["unlabeled"])  # for the next labels
    assert any("training(s) at 96 px of up to 3 steps" in line for line in lines)
    configs = [*Path("lightning_logs/solve/small/trainings").glob("*/fold_0/version_0/fit.yaml")]
    assert configs
    assert all("image_size: 96" in config.read_text() for config in configs)
    units = {*Path("out/units").iterdir()}
    again = trials.Trials(source, Plan(Path("out/plan.json"), source.key, 9.0), "small", Path("out"), lines.append)
    again.judge_start(again.plan_starts([FoundStart(candidate, "at hand")])[0])
    trainings.judge_trainings(again)
    assert [one.recipe.name for one in again.results] == [one.recipe.name for one in tried.results]
    assert {*Path("out/units").iterdir()} == units


def test_folds_that_take_too_long_are_given_up_and_taken_up_again(source: LabeledSource) -> None:
    lines: list[str] = []
    tried = trials.Trials(source, Plan(Path("out/plan.json"), source.key, 1.0), "slow", Path("out"), lines.append)
    space = Space("pixels", ("--model.backbone=mlp",), 16)
    space.read(source)
    argv = ("--model=FineTuneClassifier", *space.argv, "--model.optimizer=torch.optim.AdamW")
    recipe = Recipe("training", True, (*argv, "--data.steps_per_epoch=1", "--trainer.max_epochs=1"), 1, 8)
    assert tried.judge(recipe, space, seconds=0.001) is None
    assert "s for a fold were too many" in tried.failed[0]
    assert tried.judge(recipe, space, seconds=0) is None
    assert "the time was used up" in tried.failed[1]
    runs = Path("lightning_logs/solve/slow/trainings")
    assert len([*runs.glob("*/fold_*/version_*")]) == 1
    result = tried.judge(recipe, space)
    assert result is not None
    assert not result.probabilities.isnan().any()
    assert len([*runs.glob("*/fold_*/version_*")]) == source.num_folds


# --- starts at hand


def list_found(source: LabeledSource) -> list[str]:
    return [str(found.candidate) for found in find_starts(source, Path("lightning_logs/solve/own"))]


def test_fetched_weights_are_starts(source: LabeledSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in the caches of torch and Hugging Face, under the names that their publishers give them."""
    monkeypatch.setenv("TORCH_HOME", str(Path("torch").absolute()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    assert list_found(source) == []
    checkpoints = Path("torch/hub/checkpoints")
    checkpoints.mkdir(parents=True)
    torch.save(get_model("squeezenet1_1").state_dict(), checkpoints / "squeezenet1_1-b8a52dc0.pth")
    (checkpoints / "another.pth").write_bytes(b"of another program")
    snapshot = Path("hub/models--timm--test_resnet.r160_in1k/snapshots/abc")
    snapshot.mkdir(parents=True)
    published = build_encoder(LIBRARY, (3, 224, 224))[0].net.state_dict()
    save_file({name: one.contiguous() for name, one in published.items()}, snapshot / "model.safetensors")
    Path("hub/models--timm--test_vit.r160_in1k/snapshots/abc").mkdir(parents=True)  # a download that was stopped
    squeezenet, resnet = find_starts(source, Path("own"))
    assert squeezenet.candidate == Candidate("torchvision/squeezenet1_1")
    assert squeezenet.reason == f"published weights in {checkpoints.absolute()}"
    assert resnet.candidate.backbone == "timm/test_resnet.r160_in1k"
    for found in (squeezenet, resnet):  # without a network
        assert starts.load_start(found.candidate, source, 0).backbone.input_spec.shape == (1, 64, 64)


def test_files_that_say_which_network_they_are_of_are_starts(source: LabeledSource) -> None:
    write_start(Path("weights.safetensors"))
    save_file({"weight": torch.zeros(2)}, "other.safetensors")
    Path("damaged.safetensors").write_bytes(b"x")
    assert list_found(source) == ["weights.safetensors"]


def test_runs_without_labels_are_starts_and_others_are_not(source: LabeledSource) -> None:
    """Real runs: a pre-training, a classifier that has learned the labels, and its exported file."""
    argv = ["--data.source=images", "--data.image_size=16", "--data.batch_size=8", "--data.val_size=0"]
    argv += ["--data.steps_per_epoch=1", "--trainer.max_epochs=1", "--model.backbone=conv"]
    simclr = ["--model=SelfSupervisedModule", "--model.objective=SimCLR", "--model.optimizer=torch.optim.AdamW"]
    fit(["--data=ImageDataModule", *simclr, *argv], "mine/pretrained")
    fit(["--data=ImageDataModule", *simclr, *argv], "mine/pretrained")
    fit(["--data=ImageDataModule", *simclr, *argv], "solve/own/pretraining")
    classifier = ["--model=FineTuneClassifier", "--model.optimizer=torch.optim.AdamW"]
    trained = get_run(fit(["--data=ImageDataModule", *classifier, *argv], "mine/trained"))
    export(str(trained), out="trained.safetensors")
    assert list_found(source) == ["lightning_logs/mine/pretrained/version_1"]
    candidate = Candidate(weights="lightning_logs/mine/pretrained/version_1")
    assert starts.load_start(candidate, source, 0).saw_pool
    assert check_knowledge(candidate, source) == ""
    for path in (str(trained), "trained.safetensors"):
        with pytest.raises(InputError, match=r"has learned \d+ of these labels"):
            solve("images", minutes=0.1, candidates=[path])
    shutil.rmtree(trained)
    assert "which is gone" in check_knowledge(Candidate(weights="trained.safetensors"), source)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("timm/tf_efficientnet_lite9", r"'timm/tf_efficientnet_lite9' .*did you mean 'timm/tf_efficientnet_lite"),
        ("resnet81", r"candidate 'resnet81' .*did you mean 'resnet18'.*: give a name of torchvision or timm"),
        ("timm/tf_efficientnet_lite0.in2k", "'timm/tf_efficientnet_lite0.in2k' is not a network with published"),
        ("torchvision/tf_efficientnet_lite0", "is not a network with published weights"),
        ("resnet8", r"give .* or \{backbone: resnet8, weights: PATH\}"),
        ("nine", "did you mean 'none'"),
        ("weigts.safetensors", "'weigts.safetensors' does not exist"),
        ("weights", r"did you mean 'weights.safetensors'"),
        ("runs/", "'runs/'"),
        ("weights.safetensors", "do not say which backbone they are of"),
        (Candidate("wrn_28_2", "weights.safetensors"), "weights.safetensors"),
        (Candidate("nets.Missing", "weights.safetensors"), "backbone 'nets.Missing' cannot be imported"),
    ],
)
def test_starts_that_cannot_be_loaded_are_refused_before_anything_is_computed(
    workdir: Path,
    write_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    given: str | Candidate,
    said: str,
) -> None:
    """Unknown names before the source is opened, all others before its pixels are judged."""
    write_folder(workdir / "images", {"train": 4}, classes=2)
    save_file({"weight": torch.zeros(2)}, "weights.safetensors")
    with pytest.raises(InputError, match=said):
        solve("images", minutes=0.1, candidates=["none", given])
    is_unknown = isinstance(given, str) and given != "weights.safetensors"
    assert ("images: images" in capsys.readouterr().err) != is_unknown
    assert not list(Path("lightning_logs").glob("**/units"))


def test_a_start_may_name_its_network_and_size(workdir: Path, write_folder: Callable[..., Path]) -> None:
    """As messages about weights files advise."""
    write_folder(workdir / "images", {"train": 4}, classes=2)
    write_weights(Path("weights.safetensors"), build_encoder(LIBRARY, (3, 224, 224))[0].net.state_dict(), {})
    argv = ["solve", "images", "--minutes", "0.4", "--candidates"]
    assert main([*argv, f"{{backbone: {LIBRARY}, weights: weights.safetensors, image_size: 48}}"]) == 0
    assert "weights.safetensors, 48 px" in Path("lightning_logs/solve/images/summary.json").read_text()


def test_a_publisher_that_does_not_answer_is_one_sentence(
    workdir: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(workdir / "images", {"train": 4}, classes=2)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InputError, match=r"http://127.0.0.1:9 does not answer \(.*refused\): fetch timm/"):
        solve("images", minutes=0.1, download=True)
