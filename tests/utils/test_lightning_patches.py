"""Test that the library code behind the patches of Lightning and torch exists and is unchanged."""

import ast
import hashlib
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

import sft_lightning
from sft_lightning.utils.lightning_patches import (
    accepts_found_inf,
    disable_signal_handlers,
    find_unused_parameters,
    mark_as_fused,
)

LOOP = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop"
STEP = "lightning.pytorch.loops.optimization.automatic:_AutomaticOptimization"
SIGNALS = "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector"
CHECKPOINTS = "lightning.pytorch.trainer.connectors.checkpoint_connector:_CheckpointConnector"
# By library: the source of each function that a patch replaces, wraps, copies or relies on.
READ = {
    "lightning 2.6": {
        # utils/lightning_patches.py
        "lightning.pytorch.strategies.ddp:DDPStrategy.setup": "4a517e58a054",
        "lightning.pytorch.strategies.ddp:DDPStrategy._setup_model": "b289d6c45f78",
        "lightning.pytorch.strategies.ddp:DDPStrategy.teardown": "ee57f73ebdfc",
        f"{SIGNALS}.register_signal_handlers": "0ee994837dc4",
        "lightning.pytorch.trainer.trainer:Trainer._run": "c3ba7bf81e4f",
        f"{CHECKPOINTS}._restore_modules_and_callbacks": "565360e55210",
        f"{CHECKPOINTS}.restore_training_state": "d1d3b3593271",
        f"{LOOP}._broadcast_sigterm_tensor": "6b0f0a81cc03",
        f"{LOOP}.on_advance_end": "6196c07460c1",
        "lightning.pytorch.loops.fit_loop:_FitLoop.setup_data": "0d8e96a3dc11",
        "lightning.fabric.utilities.rank_zero:_get_rank": "7dd2b1374280",
        # cli/fast_loop.py
        f"{LOOP}.advance": "dd4eb4d2b65d",
        f"{LOOP}.on_run_start": "338206fdb5f8",
        f"{LOOP}._should_accumulate": "d2cda3362b15",
        f"{LOOP}._should_check_val_epoch": "626292a090b5",
        f"{STEP}.run": "6644ea79f798",
        f"{STEP}._make_closure": "58a34fe6208d",
        f"{STEP}._make_zero_grad_fn": "fdb3dc3d5736",
        f"{STEP}._make_backward_fn": "5d92d1bda976",
        f"{STEP}._optimizer_step": "e5bda9f172f2",
        f"{STEP}._training_step": "f717b1a1fbfe",
    },
    "torch 2.14": {
        "torch.optim.sgd:SGD.__init__": "bdaffc732abe",
        "torch.optim.adam:Adam.__init__": "63ddeb537707",
        "torch.optim.adamw:AdamW.__init__": "289467e3691a",
        "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._shutdown_workers": "ce20cb0046fc",
        "torch.utils.tensorboard.writer:SummaryWriter._get_file_writer": "77a2ec4a5115",
    },
}
INSTALLED = {f"{module.__name__} {'.'.join(module.__version__.split('.')[:2])}" for module in (lightning, torch)}


def digest_source(path: str) -> str:
    """Return a digest of a function's code; comments, docstring and layout do not count."""
    module, _, name = path.partition(":")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is not None:
        del function.body[0]
    return hashlib.sha256(ast.unparse(function).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("library", "path", "digest"), [(name, *pair) for name, read in READ.items() for pair in read.items()]
)
def test_library_code_behind_a_patch_is_unchanged(library: str, path: str, digest: str) -> None:
    if library not in INSTALLED:
        pytest.skip(f"the source was read in {library}")
    assert digest_source(path) == digest, f"{path} changed: compare the patch with it, then update the digest"


def test_only_the_patch_modules_reach_into_lightning() -> None:
    home = Path(sft_lightning.__file__).parent
    private = {
        "_layer_sync", "_signal_connector", "_broadcast_sigterm_tensor", "_checkpoint_connector",
        "_batches_that_stepped", "_get_file_writer", "_ddp_kwargs", "_step_supports_amp_scaling",
        "_need_device_dtype_check_for_fused", "_logger_connector", "_data_connector", "_current_fx_name",
        "_combined_loader", "_iterator", "_shutdown_workers",
    }  # fmt: skip
    users = {
        path.relative_to(home).as_posix()
        for path in home.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in private
    }
    assert users == {"utils/lightning_patches.py", "cli/fast_loop.py"}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_marking_as_fused_equals_constructing_fused(kind: type[torch.optim.Optimizer]) -> None:
    marked, built = (kind([torch.nn.Parameter(torch.ones(3))], lr=0.1, **own) for own in ({}, {"fused": True}))  # type: ignore[call-arg, arg-type]
    assert not accepts_found_inf(marked)
    mark_as_fused(marked)
    assert accepts_found_inf(marked)
    set_by_torch = {name: value for name, value in vars(built).items() if "fused" in name or "amp" in name}
    assert set_by_torch
    assert set_by_torch.items() <= vars(marked).items()
    assert marked.defaults == built.defaults


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_step_skips_its_update_where_found_inf_is_one(kind: type[torch.optim.Optimizer]) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([parameter], lr=0.1)  # type: ignore[call-arg]
    mark_as_fused(optimizer)
    for found, moves in ((1.0, False), (0.0, True)):
        parameter.grad = torch.ones(3)
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        optimizer.step()
        assert bool((parameter.detach() != 1).all()) is moves


def test_unused_parameters_are_found_unless_the_user_says_otherwise() -> None:
    for given, expected in (({}, True), ({"find_unused_parameters": False}, False)):
        strategy = DDPStrategy(**given)  # type: ignore[arg-type]
        find_unused_parameters(strategy)
        assert strategy._ddp_kwargs["find_unused_parameters"] is expected
    find_unused_parameters(SingleDeviceStrategy("cpu"))  # has no such setting, and needs none


def test_lightning_registers_no_signal_handler_after_the_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    registered: list[object] = []
    monkeypatch.setattr(type(trainer._signal_connector), "_register_signal", lambda *args: registered.append(args))
    trainer._signal_connector.register_signal_handlers()
    assert registered
    registered.clear()
    disable_signal_handlers(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert not registered


@pytest.mark.slow
def test_trainer_reads_whole_numbers_as_int_whatever_was_imported_before() -> None:
    code = (
        "from typing import Optional, Union; Optional[Union[float, int]]\n"  # as scikit-learn does
        "from sft_lightning.cli.lightning_cli import SFTCLI, prepare_process\n"
        "from sft_lightning.utils.errors import InputError\n"
        "from lightning.pytorch import Trainer\n"
        "from jsonargparse import ArgumentParser\n"
        "prepare_process()\n"
        "parser = ArgumentParser()\n"
        "parser.add_class_arguments(Trainer, None)\n"
        "names = ['limit_train_batches', 'limit_val_batches', 'limit_test_batches', 'limit_predict_batches',"
        " 'overfit_batches', 'val_check_interval']\n"
        "given = parser.parse_args([f'--{name}=1' for name in names])\n"
        "print([type(given[name]).__name__ for name in names])\n"
        "print(type(parser.parse_args(['--limit_train_batches=0.5'])['limit_train_batches']).__name__)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(["int"] * 6), "float"]
