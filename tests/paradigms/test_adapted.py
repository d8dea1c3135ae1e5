"""LoRA and (IA)^3 in the paradigms: what is trained when, what a run leaves, and what others make of that."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from sft_lightning import DecoupledFeatureClassifier, FineTuneClassifier, SemiSupervisedModule
from sft_lightning.__main__ import main
from sft_lightning.export.export import export
from sft_lightning.losses.features import SupCon
from sft_lightning.losses.regularizers import BSS, DELTA, L2
from sft_lightning.losses.regularizers.base import Regularizer, record_outputs
from sft_lightning.losses.unlabeled import FixMatch
from sft_lightning.networks.adapters import IA3, Adapter, LoRA
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import select_evaluated_weights
from sft_lightning.paradigms.feature_cache import FOLDER
from sft_lightning.runs.trained_network import load_trained_network
from tests.conftest import CONFIGS
from tests.paradigms.helpers import SHAPE, Recorder, classifier, cli, moved, sample, state, trainer

RESNET = "timm/resnet10t"
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
Config = Callable[[str], Any]
KINDS: list[tuple[Adapter, Config]] = [
    (LoRA(rank=3, alpha=5.0), lambda names: peft.LoraConfig(r=3, lora_alpha=5, target_modules=names)),
    (IA3(), lambda names: peft.IA3Config(target_modules=names, feedforward_modules=[])),
]


def own(tensors: Any) -> set[str]:
    """The names of an adapter's parameters."""
    return {n for n in tensors if n.startswith("backbone.") and (".ia3_l" in n or ".lora_A" in n or ".lora_B" in n)}


def trained(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in moved(before, after) if not name.startswith("_metrics")}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(X)
    return found


class Modes(Callback):
    """The modules that were in training mode in each step."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append({name for name, m in pl_module.named_modules() if m.training})


# --- training


@pytest.mark.parametrize(("adapter", "config"), KINDS, ids=["lora", "ia3"])
def test_5_steps_equal_a_plain_loop_with_peft(adapter: Adapter, config: Config) -> None:
    model = classifier(RESNET, adapter=adapter)
    net = timm.create_model("resnet10t", num_classes=0)
    layers = "|".join(n.replace(".", r"\.") for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    peft.inject_adapter_in_model(config(layers), net)
    tensors = {n.removeprefix("backbone.net."): t for n, t in state(model).items() if n.startswith("backbone.net.")}
    net.load_state_dict({n: t for n, t in tensors.items() if not n.endswith("lora_scale")})
    head = nn.Linear(512, 10)
    head.load_state_dict(model.head.state_dict())
    seen = Recorder()
    trainer([seen], max_epochs=1).fit(model, sample(num_labels=50))

    parameters = [*head.parameters(), *(p for n, p in net.named_parameters() if "lora_" in n or "ia3_" in n)]
    optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9)
    net.eval()
    losses = []
    for batch in seen.batches:
        x, y, *_ = batch["labeled"]
        loss = F.cross_entropy(head(net(x.expand(-1, 3, -1, -1))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 5
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    after = {n.removeprefix("backbone.net."): t for n, t in state(model).items()}
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("adapter", [LoRA(rank=2, dropout=0.5), IA3()], ids=["lora", "ia3"])
def test_only_adapter_and_head_move_and_all_else_is_in_eval_mode(adapter: Adapter) -> None:
    model, modes = classifier(RESNET, adapter=adapter), Modes()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm closes residual branches, where no gradient would arrive
    before = state(model)
    assert any(name.endswith("running_mean") for name in before)
    trainer([modes], max_epochs=2, val_check_interval=1).fit(model, sample(steps_per_epoch=3))
    assert len(modes.seen) == 6
    assert trained(before, state(model)) == {*own(before), "head.weight", "head.bias"}
    model.train()
    for names in [*modes.seen, {name for name, m in model.named_modules() if m.training}]:
        inside = {name for name in names if name.startswith("backbone")}
        assert inside == {n for n, _ in model.backbone.named_modules(prefix="backbone") if adapter.marker in n}


def test_the_head_comes_first_where_it_is_to() -> None:
    model, seen, modes = classifier("conv", adapter=LoRA(dropout=0.5), head_only_epochs=1), Recorder(), Modes()
    before = state(model)
    trainer([seen, modes], max_epochs=3).fit(model, sample())
    assert trained(before, seen.states[0]) == {"head.weight", "head.bias"}
    assert trained(seen.states[0], seen.states[2]) == {*own(before), "head.weight", "head.bias"}
    assert [any("lora_dropout" in name for name in names) for names in modes.seen] == [False] * 2 + [True] * 4


def test_the_adapter_learns_at_the_rate_of_a_backbone() -> None:
    model = classifier("conv", lr=1.0, adapter=LoRA(), backbone_lr_scale=0.1)
    run = trainer(limit_train_batches=1)
    run.fit(model, sample())
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in run.optimizers[0].param_groups for p in g["params"]}
    expected = {**dict.fromkeys(own(names.values()), 0.1), "head.weight": 1.0, "head.bias": 1.0}
    assert rates == pytest.approx(expected)


def test_features_that_an_adapter_changes_are_not_kept(workdir: Path) -> None:
    trainer(max_epochs=2).fit(classifier("conv", adapter=LoRA()), sample())
    assert not FOLDER.exists()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [LoRA(rank=2), IA3()], ids=["lora", "ia3"])
def test_a_compiled_backbone_gives_the_losses_of_the_eager_one(adapter: Adapter) -> None:
    losses = []
    for compile in (False, True):
        model, seen = classifier("conv", adapter=adapter, head_only_epochs=1, compile=compile, lr=0.5), Recorder()
        trainer([seen], max_epochs=2).fit(model, sample())
        losses.append(seen.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# --- beside a regularizer, unlabeled examples, stages


@pytest.mark.parametrize("regularizer", [L2(0.1), DELTA(0.1, beta=0.0), BSS(0.1)])
def test_regularizers(regularizer: Regularizer) -> None:
    model = classifier("conv", adapter=LoRA(), regularizer=regularizer)
    before = state(model)
    run = trainer(max_epochs=2)
    run.fit(model, sample())
    assert float(run.callback_metrics["train/regularizer"]) > 0
    assert trained(before, state(model)) == {*own(before), "head.weight", "head.bias"}


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_delta_compares_with_the_plain_network_of_the_start(name: str) -> None:
    delta = DELTA(1.0, beta=0.0, layers=3)
    model = classifier(name, adapter=LoRA(), regularizer=delta, lr=0.1)
    start = select_evaluated_weights(
        {n.removeprefix("backbone."): t for n, t in state(model).items() if n.startswith("backbone.")}
    )
    trainer(max_epochs=3).fit(model, sample())
    kept = {n.removeprefix("regularizer.source."): t for n, t in state(model).items() if "regularizer.source." in n}
    assert kept.keys() == start.keys()
    assert not moved(kept, start)
    now = select_evaluated_weights(
        {n.removeprefix("backbone."): t for n, t in state(model).items() if n.startswith("backbone.")}
    )
    maps = []
    for tensors in (start, now):
        plain, _ = build_backbone(name, SHAPE)
        plain.load_state_dict(tensors)
        plain.eval()
        with torch.no_grad(), record_outputs(plain, delta.select_modules(plain)) as passes:
            plain(X)
        maps.append(passes[0][1])
    expected = sum(float((a - b).square().flatten(1).sum(1).mean()) / a.shape[1] for a, b in zip(*maps, strict=True))
    with delta.capture():
        model.eval().backbone(X)
    assert float(delta(model)) == pytest.approx(expected / 2, rel=1e-3)
    assert expected > 0


def test_fixmatch_and_the_average_that_is_evaluated() -> None:
    torch.manual_seed(0)
    model = SemiSupervisedModule(
        FixMatch(threshold=0.1), backbone="conv", num_classes=10, input_spec=SHAPE, adapter=LoRA(rank=2),
        ema_decay=0.9, optimizer=lambda p: torch.optim.SGD(p, 0.5),
    )  # fmt: skip
    before = state(model)
    run = trainer(max_epochs=2)
    run.fit(model, sample(steps_per_epoch=4, unlabeled_ratio=1))
    assert float(run.callback_metrics["train/unsupervised"]) > 0
    both = {*own(before), "head.weight", "head.bias"}
    assert trained(before, state(model)) == {*both, *(f"average.{name}" for name in both), "average.steps"}
    plain = FineTuneClassifier("conv", 10, SHAPE)
    tensors = select_evaluated_weights(state(model))
    plain.load_state_dict({name: tensors[name] for name in plain.state_dict()})
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), model.outputs(X).logits, rtol=1e-3)


def test_two_stages() -> None:
    torch.manual_seed(0)
    model = DecoupledFeatureClassifier(
        SupCon(), coupling="two_stage", feature_epochs=1, backbone="conv", num_classes=10, input_spec=SHAPE,
        adapter=LoRA(rank=2), optimizer=lambda p: torch.optim.SGD(p, 0.5),
    )  # fmt: skip
    before, seen = state(model), Recorder()
    trainer([seen], max_epochs=2).fit(model, sample())
    first, second = trained(before, seen.states[0]), trained(seen.states[0], seen.states[1])
    assert {name for name in first if not name.startswith("feature_loss")} == own(before)
    assert second == {"head.weight", "head.bias", "stage"}


# --- what a run leaves

LORA = ["--model.init_args.adapter=LoRA", "--model.init_args.adapter.init_args.rank=3"]
LORA += ["--model.init_args.adapter.init_args.alpha=20"]
IA3_TOO = ["--model.init_args.adapter=IA3"]
KIND = pytest.mark.parametrize("words", [LORA, IA3_TOO], ids=["lora", "ia3"])
LORA_FIRST = pytest.mark.parametrize(
    "words", [LORA, pytest.param(IA3_TOO, marks=pytest.mark.slow)], ids=["lora", "ia3"]
)


def fitted(name: str, *words: str) -> tuple[Path, Any]:
    run = cli("fit", "fine_tune", f"--run_name={name}", "--model.init_args.optimizer.init_args.lr=0.05", *words)
    return Path(str(run.trainer.log_dir)), run.model.eval()


@LORA_FIRST
def test_what_is_exported_computes_the_same_in_the_plain_network(workdir: Path, words: list[str]) -> None:
    run, model = fitted("run", "--model.init_args.backbone=conv", *words)
    whole, backbone = export(str(run), "model"), export(str(run), "backbone")
    plain = FineTuneClassifier("conv", 10, SHAPE, weights=str(whole))
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-5)
    start, _ = build_backbone("conv", SHAPE, str(backbone))
    assert not moved(state(start), state(plain.backbone))
    trained = load_trained_network(run / "checkpoints" / "last.ckpt")
    assert trained.backbone.keys() == start.state_dict().keys()
    assert not moved(trained.backbone, state(start))


@KIND
def test_a_run_starts_from_the_merged_weights(workdir: Path, words: list[str]) -> None:
    run, model = fitted("run", *words)
    for start in (
        FineTuneClassifier("mlp", 10, SHAPE, weights=str(run)),
        FineTuneClassifier("mlp", 10, SHAPE, weights=str(run), adapter=LoRA()),
        SemiSupervisedModule(FixMatch(), backbone="mlp", num_classes=10, input_spec=SHAPE, weights=str(run)),
    ):
        torch.testing.assert_close(logits(start), logits(model), rtol=1e-5, atol=1e-5)
    second, twice = fitted("second", f"--model.init_args.weights={run}", *words)
    assert not torch.allclose(logits(twice), logits(model), rtol=1e-3)
    plain = FineTuneClassifier("mlp", 10, SHAPE, weights=str(second))
    torch.testing.assert_close(logits(plain), logits(twice), rtol=1e-5, atol=1e-5)


def test_weights_between_start_and_merged(workdir: Path) -> None:
    first, _ = fitted("start")
    second, _ = fitted("tuned", f"--model.init_args.weights={first}", *LORA)
    start, whole = (state(FineTuneClassifier("mlp", 10, SHAPE, weights=str(run))) for run in (first, second))
    file = export(str(second), wise=0.25, out="between.safetensors")
    between = state(FineTuneClassifier("mlp", 10, SHAPE, weights=str(file)))
    for name in between:
        if name.startswith(("backbone.net", "head")):
            torch.testing.assert_close(between[name], torch.lerp(start[name], whole[name], 0.25), msg=name)
    assert "backbone.net.2.0.weight" in moved(start, whole)


@LORA_FIRST
def test_a_resumed_run_ends_where_one_without_a_break_does(workdir: Path, words: list[str]) -> None:
    words = [*words, "--model.init_args.head_only_epochs=1"]
    _, whole = fitted("whole", *words, "--trainer.max_epochs=4")
    fitted("part", *words, "--trainer.max_epochs=2")
    run, resumed = fitted("part", *words, "--trainer.max_epochs=4", "--ckpt_path=last")
    assert run.name == "version_0"
    assert not {name for name in moved(state(whole), state(resumed)) if not name.startswith("_metrics")}


def test_a_run_is_tested_and_predicts(workdir: Path) -> None:
    run, model = fitted("run", *LORA)
    for command in ("validate", "test", "predict"):
        assert main([command, f"--ckpt_path={run}", "--trainer.accelerator=cpu"]) == 0
    assert len((run / "predictions.csv").read_text().splitlines()) == 2001
    checkpoint = run / "checkpoints" / "last.ckpt"
    told = torch.load(checkpoint, weights_only=True)  # nothing in it is code
    assert "adapter" not in told["hyper_parameters"]
    settings: dict[str, Any] = {"num_classes": 10, "input_spec": SHAPE}
    again = FineTuneClassifier.load_from_checkpoint(checkpoint, adapter=LoRA(rank=3, alpha=20.0), **settings)
    assert torch.equal(logits(again), logits(model))


# --- what does not go together


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            [*LORA, "--model.init_args.tune=head"],
            "tune is 'head', but adapter LoRA selects the parameters to train: leave it at 'all'",
        ),
        (
            [*LORA, "--model.init_args.layer_decay=0.5"],
            "layer_decay is 0.5, but adapter LoRA learns at one rate: leave it at 1, or set backbone_lr_scale",
        ),
        (
            [*LORA, "--model.init_args.regularizer=L2SP"],
            "regularizer L2SP draws the backbone's own weights to their start, where adapter LoRA leaves them: set L2, "
            "DELTA or BSS",
        ),
        (
            ["--model.init_args.adapter=LoRa"],
            "class 'LoRa' is unknown (did you mean 'LoRA'?): give its name, or package.module.Class",
        ),
        (["--model.init_args.adapter=L2"], "class 'L2' does not fit adapter: give IA3 or LoRA"),
        (
            [*LORA, "--model.init_args.adapter.init_args.rnk=3"],
            "LoRA has no option 'rnk' (did you mean 'rank'?)",
        ),
        ([*LORA, "--model.init_args.adapter.init_args.rank=0"], "rank is 0: give a number of at least 1"),
        (
            [*LORA, "--model.init_args.adapter.init_args.targets=[qkv]"],
            "targets is ['qkv'], but 'qkv' ends the name of no layer of backbone 'mlp' that can be adapted: give null "
            "for all, or some of its 3 layers such as 1.0, 2.0, 3.0",
        ),
    ],
)
def test_bad_settings(workdir: Path, cli_error: Callable[..., str], words: list[str], expected: str) -> None:
    config = str(CONFIGS / "quickstart" / "fine_tune.yaml")
    assert cli_error("fit", "--config", config, "--trainer.accelerator=cpu", "--run_name=bad", *words) == expected
    assert not Path("lightning_logs", "bad").exists()


def test_without_peft(workdir: Path, cli_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    config = str(CONFIGS / "quickstart" / "fine_tune.yaml")
    expected = "adapter LoRA needs the extra 'lora': pip install 'sft-lightning[lora]'"
    assert cli_error("fit", "--config", config, "--run_name=bad", *LORA) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.init_args.adapter.init_args.alpha=6"], "adapter LoRA has alpha / rank 2, but the checkpoint was"),
        (["--model.init_args.adapter.init_args.rank=4"], "is of another model than the config"),
        (["--model.init_args.adapter=null"], "is of another model than the config"),
    ],
)
def test_a_run_with_another_adapter(
    workdir: Path, cli_error: Callable[..., str], words: list[str], expected: str
) -> None:
    run, _ = fitted("run", *LORA)
    assert expected in cli_error("test", "--config", str(run / "fit.yaml"), f"--ckpt_path={run}", *words)
