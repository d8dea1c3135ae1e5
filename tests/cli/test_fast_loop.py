"""The fast loop computes, counts, logs and saves what Lightning's does, or gives way to it."""

import csv
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_lightning import WarmupCosine
from sft_lightning.cli import fast_loop
from sft_lightning.cli.lightning_cli import SFTCLI
from sft_lightning.losses.regularizers import L2SP
from sft_lightning.paradigms.fine_tune import FineTuneClassifier
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from tests.paradigms.helpers import (
    SHAPE,
    Recorder,
    classifier,
    cli,
    left_by_ranks,
    sample,
    state,
    trainer,
    two_processes,
)

SCHEDULE = "--model.init_args.lr_scheduler={class_path: WarmupCosine, init_args: {warmup_steps: 3}}"


def trained(
    monkeypatch: pytest.MonkeyPatch, config: str, is_lean: bool, *words: str, beside: Callback | None = None
) -> tuple[SFTCLI, Recorder]:
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(fast_loop, "CALLBACKS", fast_loop.CALLBACKS | {Recorder, Talker})  # as if they were proven
        patch.setattr(RunCheckpoint, "SHARE", 1e9)  # saves at the same moments, however long each takes
        if not is_lean:
            patch.setattr(fast_loop, "is_proven", lambda trainer: False)
        install = fast_loop.LeanEpochLoop.install
        patch.setattr(
            fast_loop.LeanEpochLoop,
            "install",
            lambda t: (t.callbacks.extend([recorder] if beside is None else [recorder, beside]), install(t)),
        )
        done = cli("fit", config, "--trainer.log_every_n_steps=4", *words)
    assert done.trainer.fit_loop.epoch_loop._lean is is_lean
    return done, recorder


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


HALF = "--trainer.precision=bf16-mixed"


@pytest.mark.parametrize(
    "words",
    [
        ("autoencoder",),
        ("self_supervised", "--model.init_args.backbone=mlp"),
        ("fine_tune",),
        ("fine_tune", SCHEDULE),
        ("fine_tune", HALF),
    ],
)
def test_equals_lightnings_step(words: tuple[str, ...], workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(words, monkeypatch)


def test_equals_lightnings_step_on_texts(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{'word ' * (1 + i % 9)}number {i},{i % 2},{('train', 'train', 'val')[i // 2 % 3]}" for i in range(90)]
    Path("texts.csv").write_text("text,label,split\n" + "\n".join(rows))
    small = ("--model.init_args.network=small_transformer", "--model.init_args.weights=none")
    given = ("--data.init_args.source=texts.csv", "--data.init_args.max_length=12", "--data.init_args.batch_size=4")
    config = "../pretraining/masked_language"
    check_equal((config, *small, *given, "--data.init_args.tokenizer=words:99"), monkeypatch)


def check_equal(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    (a, seen_a), (b, seen_b) = (trained(monkeypatch, words[0], is_lean, *words[1:]) for is_lean in (True, False))
    assert len(seen_a.losses) == 12
    assert seen_a.losses == seen_b.losses
    assert seen_a.rates == seen_b.rates
    first, second = state(a.model), state(b.model)
    assert all(torch.equal(first[name], second[name]) for name in second)
    told = [scalars(str(done.trainer.log_dir)) for done in (a, b)]
    assert told[0] == told[1]
    assert len(told[0]["train/loss"]) == 3
    saved = [torch.load(Path(str(done.trainer.log_dir)) / "checkpoints" / "last.ckpt") for done in (a, b)]
    assert saved[0]["loops"] == saved[1]["loops"]
    assert saved[0]["global_step"] == saved[1]["global_step"] == 12


def test_two_processes_are_lean_and_the_same(tmp_path: Path) -> None:
    first, second = left_by_ranks(two_processes("fast_loop", tmp_path))
    a, b = first["lean"], first["lightning"]
    assert (a["lean"], b["lean"]) == (True, False)
    assert len(a["losses"]) == 12
    assert a["losses"] == b["losses"]
    assert first["lean"]["losses"] != second["lean"]["losses"]
    for other in (b, second["lean"]):
        assert all(torch.equal(a["state"][name], other["state"][name]) for name in a["state"])
    assert (a["asked"], b["asked"]) == (0, 0)  # Lightning would ask all in each step for a signal, and wait
    assert a["sent"] == []  # nothing that never changes is sent in each step
    statistics = {name.split(".")[-1] for name in first["conv"]}
    assert statistics == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_resumed_training_is_lean_and_the_same(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(monkeypatch, "fine_tune", True, "--trainer.max_epochs=3")
    half, _ = trained(monkeypatch, "fine_tune", True, "--trainer.max_epochs=2")
    go_on = ("--trainer.max_epochs=3", f"--ckpt_path={half.trainer.log_dir}")
    rest, _ = trained(monkeypatch, "fine_tune", True, *go_on)
    assert rest.trainer.global_step == whole.trainer.global_step == 18
    a, b = state(whole.model), state(rest.model)
    assert all(torch.equal(a[name], b[name]) for name in a)


class Talker(Callback):
    """Logs by itself, at steps when the log is not due, and reads what others see."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 3 == 1:
            module.log("own/start", float(trainer.global_step), prog_bar=True)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 3 == 2:
            module.log("own/mean", float(trainer.global_step), on_step=True, on_epoch=True, batch_size=2)
        shown = (trainer.callback_metrics, trainer.progress_bar_metrics, trainer.logged_metrics)
        self.seen.append([{name: float(value) for name, value in metrics.items()} for metrics in shown])


@pytest.mark.parametrize("words", [(), ("--trainer.val_check_interval=2",), ("--trainer.limit_val_batches=0",)])
def test_what_callbacks_log_arrives(words: tuple[str, ...], workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talkers = Talker(), Talker()
    a, b = (
        trained(monkeypatch, "fine_tune", is_lean, *words, beside=talker)[0]
        for is_lean, talker in zip((True, False), talkers, strict=True)
    )
    assert len(talkers[0].seen) == 12
    assert talkers[0].seen == talkers[1].seen
    told = [scalars(str(done.trainer.log_dir)) for done in (a, b)]
    assert told[0] == told[1]
    assert {"own/start", "own/mean_step", "own/mean_epoch"} <= set(told[0])
    assert ("val/accuracy" in told[0]) is (words != ("--trainer.limit_val_batches=0",))


class Hooked(Callback):
    """Writes down every call that it gets, in order, with the step."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []


def _hook(name: str) -> Any:
    def record(self: Hooked, trainer: Any, *_: Any, **__: Any) -> None:
        self.calls.append((name, trainer.global_step))

    return record


for _name in [name for name in vars(Callback) if name.startswith("on_")]:
    setattr(Hooked, _name, _hook(_name))


class Reader(Hooked):
    """Has only hooks that the fast loop calls, so that the order of calls within it can be compared."""


for _name in fast_loop._INSIDE_A_STEP:
    setattr(Reader, _name, getattr(Callback, _name))


class Released(Callback):
    """Releases the backbone inside an epoch."""

    def __init__(self, how: str) -> None:
        self.how = how

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.backbone.requires_grad_(False)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            pl_module.backbone.requires_grad_(True)
            optimizer, new = trainer.optimizers[0], list(pl_module.backbone.parameters())
            if self.how == "group":
                optimizer.add_param_group({"params": new, "lr": 1e-3, "name": "late"})
            else:
                optimizer.param_groups[0]["params"].extend(new)


class Changed(Callback):
    """Does something to the trainer, the module or the optimizer inside an epoch."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self.change = change

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            self.change(trainer)


class Sharp(torch.optim.SGD):
    """Steps uphill first where it has a closure, as SAM does."""

    def step(self, closure: Any = None) -> Any:
        if closure is None:
            return super().step()
        with torch.enable_grad():
            closure()
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        old = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                p.add_(p.grad, alpha=0.05)
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            for p, before in zip(moved, old, strict=True):
                p.copy_(before)
        super().step()
        return loss


class Sticky(torch.optim.SGD):
    """Keeps a share of the old gradient."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.9)


class Manual(FineTuneClassifier):
    """Steps by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Mine(FineTuneClassifier):
    """Changes nothing; who knows?"""


class Profiled(SimpleProfiler):
    """Counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def start(self, action_name: str) -> None:
        if not action_name.startswith(("[LeanEpochLoop]", "[_TrainingEpochLoop]")):  # of the class itself
            self.calls.append((action_name, 0))
        super().start(action_name)


def replaced(thing: Any, name: str) -> None:
    """Sets a method on an instance that does what the class's own does, and counts."""
    own = getattr(thing, name)
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    setattr(thing, name, counted)


def step_twice(trainer: Any) -> None:
    optimizer = trainer.optimizers[0]
    own = optimizer.step

    def step(closure: Any = None) -> Any:
        if closure is not None:
            closure()
        return own(closure=closure)

    optimizer.step = step


def hook_optimizer(trainer: Any) -> None:
    def shrink(optimizer: Any, *_: Any) -> None:  # before the forward pass, where the step has a closure
        with torch.no_grad():
            for p in optimizer.param_groups[0]["params"]:
                p.mul_(0.9)

    trainer.optimizers[0].register_step_pre_hook(shrink)


def sgd(**settings: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda p: torch.optim.SGD(p, 0.05, **settings)


def torchs(name: str) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda p: getattr(torch.optim, name)(p, lr=0.01)


def cosine(optimizer: Any) -> Any:
    return WarmupCosine(optimizer, warmup_steps=2)


# Name: whether the fast loop runs at the end, and what differs from the plainest training.
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "nothing": (True, {}),
    "momentum": (True, {"optimizer": sgd(momentum=0.9, weight_decay=0.01)}),
    **{name: (True, {"optimizer": torchs(name)}) for name in ("Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Rprop")},
    "fused": (True, {"optimizer": lambda p: torch.optim.AdamW(p, 0.01, fused=True)}),
    "schedule by steps": (True, {"lr_scheduler": cosine}),
    "schedule by epochs": (True, {"lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)}),
    "regularizer": (True, {"regularizer": L2SP()}),
    "head alone": (True, {"tune": "head", "cache_features": False}),
    "bfloat16": (True, {"trainer": {"precision": "bf16-mixed"}}),
    "validation inside": (True, {"trainer": {"val_check_interval": 2}}),
    "no validation": (True, {"trainer": {"limit_val_batches": 0}}),
    "a step's limit": (True, {"trainer": {"max_steps": 5}}),
    "one batch": (True, {"trainer": {"overfit_batches": 1}}),
    "few batches": (True, {"trainer": {"limit_train_batches": 3}}),
    "deterministic": (True, {"trainer": {"deterministic": True}}),
    "fast_dev_run": (False, {"trainer": {"fast_dev_run": 3}}),
    "early stopping": (True, {"callbacks": lambda: [EarlyStopping("val/loss", patience=0, min_delta=10.0)]}),
    "rates logged": (True, {"callbacks": lambda: [LearningRateMonitor("step")], "lr_scheduler": cosine}),
    "checkpoints": (True, {"callbacks": lambda: [ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)]}),
    "timer": (True, {"callbacks": lambda: [Timer({"hours": 1})]}),
    "a callback's hooks": (True, {"callbacks": lambda: [Reader()]}),
    "all hooks": (False, {"callbacks": lambda: [Hooked()]}),
    "a lambda": (False, {"callbacks": lambda: [LambdaCallback(on_train_batch_end=lambda *_: None)]}),
    "gradual release": (True, {"callbacks": lambda: [Released("group")], "tune": "head", "cache_features": False}),
    "appended parameters": (True, {"callbacks": lambda: [Released("more")], "tune": "head", "cache_features": False}),
    "weight averaging": (False, {"callbacks": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)]}),
    "accumulation later": (False, {"callbacks": lambda: [GradientAccumulationScheduler({1: 2})]}),
    "accumulation": (False, {"trainer": {"accumulate_grad_batches": 2}}),
    "clipping": (False, {"trainer": {"gradient_clip_val": 0.1}}),
    "clipping by value": (False, {"trainer": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}}),
    "anomalies": (False, {"trainer": {"detect_anomaly": True}}),
    "true half": (False, {"trainer": {"precision": "bf16-true"}}),
    "profiler": (False, {"trainer": {"profiler": Profiled}}),
    "SAM": (False, {"optimizer": lambda p: Sharp(p, 0.05)}),
    "own zero_grad": (False, {"optimizer": lambda p: Sticky(p, 0.05)}),
    "LBFGS": (False, {"optimizer": lambda p: torch.optim.LBFGS(p, max_iter=2)}),  # of 20 by default
    "manual": (False, {"kind": Manual}),
    "subclass": (False, {"kind": Mine}),
    "method on the module": (False, {"before": lambda t, m, d: replaced(m, "training_step")}),
    "backward on the module": (False, {"before": lambda t, m, d: replaced(m, "on_after_backward")}),
    "method on the data": (False, {"before": lambda t, m, d: replaced(d, "on_after_batch_transfer")}),
    "method on the strategy": (False, {"before": lambda t, m, d: replaced(t.strategy, "backward")}),
    "method on the precision": (False, {"before": lambda t, m, d: replaced(t.precision_plugin, "optimizer_step")}),
    "clipping set inside": (False, {"change": lambda t: setattr(t, "gradient_clip_val", 0.01)}),
    "accumulation set inside": (False, {"change": lambda t: setattr(t, "accumulate_grad_batches", 2)}),
    "callback added inside": (False, {"change": lambda t: t.callbacks.append(Hooked())}),
    "step replaced inside": (False, {"change": step_twice}),
    "hook added inside": (False, {"change": hook_optimizer}),
    "rate set inside": (True, {"change": lambda t: t.optimizers[0].param_groups[0].update(lr=0.5)}),
}


def as_numbers(thing: Any) -> Any:
    """Return the same with lists in the place of tensors, which `==` compares."""
    if isinstance(thing, dict):
        return {name: as_numbers(value) for name, value in thing.items()}
    if isinstance(thing, list):
        return [as_numbers(value) for value in thing]
    return thing.tolist() if isinstance(thing, torch.Tensor) else thing


def run_case(is_allowed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, **case: Any) -> dict[str, Any]:
    """Trains two epochs of four steps; returns everything that a user could see of it."""
    change = case.pop("change", None)
    callbacks = [*case.pop("callbacks", list)(), *([] if change is None else [Changed(change)])]
    flags = {name: value() if isinstance(value, type) else value for name, value in case.pop("trainer", {}).items()}
    before, kind = case.pop("before", None), case.pop("kind", FineTuneClassifier)
    seed_everything(0)
    module = kind("mlp", 10, SHAPE, **{"optimizer": sgd(), **deepcopy(case)})
    data = sample(num_labels=40, steps_per_epoch=4)
    made = trainer(
        callbacks,
        **{"max_epochs": 2, "logger": CSVLogger(folder), "log_every_n_steps": 2, "default_root_dir": folder,
           "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), **flags},
    )  # fmt: skip
    if is_allowed:
        fast_loop.LeanEpochLoop.install(made)
    if before is not None:
        before(made, module, data)
    with monkeypatch.context() as patch:
        patch.setattr(
            fast_loop, "CALLBACKS", fast_loop.CALLBACKS | {Reader, Changed, Released, Recorder}
        )  # as if they were proven
        made.fit(module, data)
    logs = [
        {name: value for name, value in row.items() if "time" not in name}
        for path in sorted(folder.rglob("metrics.csv"))
        for row in csv.DictReader(path.open())
    ]
    return {
        "fast": getattr(made.fit_loop.epoch_loop, "_lean", False),
        "weights": as_numbers(state(module)),
        "optimizer": as_numbers(made.optimizers[0].state_dict()),
        "steps": (made.global_step, made.fit_loop.epoch_loop.batch_progress.state_dict(), made.current_epoch),
        "metrics": {name: float(value) for name, value in made.callback_metrics.items()},
        "logs": logs,
        "calls": [c.calls for c in made.callbacks if isinstance(c, Hooked)] + [getattr(made.profiler, "calls", [])],  # type: ignore[attr-defined]
        "files": sorted(path.name for path in folder.rglob("*.ckpt")),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if k % 2 else []) for k, name in enumerate(CASES)]
)
def test_the_fast_loop_computes_what_lightnings_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_fast, case = CASES[name]
    ours, lightnings = (
        run_case(is_allowed, tmp_path / str(is_allowed), monkeypatch, **case) for is_allowed in (True, False)
    )
    assert ours.pop("fast") is is_fast
    lightnings.pop("fast")
    assert ours == lightnings
    assert ours["steps"][0] > 0


def test_a_changed_class_gets_lightnings_loop(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(FineTuneClassifier, "on_after_backward", lambda self: calls.append(1), raising=False)
    cli("fit", "fine_tune")
    assert len(calls) == 12


def test_the_switch_leaves_lightnings_loop_in_place(workdir: Path) -> None:
    assert isinstance(cli("fit", "fine_tune").trainer.fit_loop.epoch_loop, fast_loop.LeanEpochLoop)
    assert not isinstance(
        cli("fit", "fine_tune", "--fast_loop=false").trainer.fit_loop.epoch_loop, fast_loop.LeanEpochLoop
    )


def test_what_ddp_is_told_to_leave_out_is_added() -> None:
    model = classifier("mlp")
    own = ["backbone.mean", "backbone.std", "class_weight"]
    assert sorted(model._ddp_params_and_buffers_to_ignore) == own
    ddp: Any = torch.nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(model, ["head.bias"])
    assert sorted(model._ddp_params_and_buffers_to_ignore) == sorted([*own, "head.bias"])
