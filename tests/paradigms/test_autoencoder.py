import csv
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sft_lightning import AutoencoderModule, ImageDataModule
from sft_lightning.data.batches import Unlabeled
from sft_lightning.networks.build import rebuild_encoder
from sft_lightning.training.callbacks.predictions import PredictionWriter
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import SHAPE, Recorder, batches, cli, moved, sample, state, trainer


def _autoencoder(network: Any = "mlp", **settings: Any) -> AutoencoderModule:
    torch.manual_seed(0)
    return AutoencoderModule(
        network, **{"optimizer": lambda p: torch.optim.Adam(p, 0.001, eps=1e-3), "input_spec": SHAPE, **settings}
    )


def _data(**settings: Any) -> ImageDataModule:
    return sample(batch_size=32, **settings)


def test_20_steps_equal_a_plain_loop() -> None:
    model, seen = _autoencoder(), Recorder()
    plain = [p.detach().clone().requires_grad_() for p in model.parameters()]
    trainer([seen], max_epochs=2).fit(model, _data(steps_per_epoch=10))
    optimizer, losses = torch.optim.Adam(plain, 0.001, eps=1e-3), []
    for batch in seen.batches:
        assert list(batch) == ["unlabeled"]
        x = batch["unlabeled"].weak.flatten(1)
        h = x
        for k in range(0, 12, 2):
            h = h @ plain[k].T + plain[k + 1]
            h = h.relu() if k < 10 else h.sigmoid()
        loss = ((h - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 20
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    for mine, other in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-5)


class Spy(AutoencoderModule):
    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return cast(Tensor, super().forward(x))


@pytest.mark.parametrize("settings", [{"noise": 0.3}, {"hidden": 0.5}, {"noise": 0.1, "hidden": 0.5}])
def test_what_is_seen_is_corrupted_and_what_is_drawn_is_not(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Spy("mlp", SHAPE, **settings)
    x = torch.rand(4, *SHAPE)
    clean = x.clone()
    loss = model.step({"unlabeled": Unlabeled(x, torch.arange(4))}).loss
    assert torch.equal(x, clean)
    assert not torch.equal(model.seen, x)
    with torch.no_grad():
        drawn = model.decoder(model.encoder(model.seen))
    assert loss.item() == pytest.approx(float(F.mse_loss(drawn, clean)))


def test_held_out_pictures_are_not_corrupted() -> None:
    model, data = _autoencoder(noise=0.5, hidden=0.5), _data(eval_batch_size=7)
    run = trainer()
    run.fit(model, data)
    x = torch.cat([data.on_after_batch_transfer(raw, 0).x for raw in data.val_dataloader()])
    with torch.no_grad():
        expected = F.mse_loss(model.eval()(x), x)
    assert len(x) == 30
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_saved_encoder_rebuilds_to_identical_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = cli("fit", "autoencoder", f"--model.init_args.network={network}", "--run_name=ae").model
    x = torch.rand(5, *SHAPE)
    again = rebuild_encoder(tmp_path / "lightning_logs" / "ae" / "version_0")
    assert torch.equal(again.eval()(x), model.encoder.eval()(x))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_odd_image_sizes_in_color(network: str) -> None:
    model = _autoencoder(network, input_spec=(3, 29, 37))
    batch = {"unlabeled": Unlabeled(torch.rand(4, 3, 29, 37), torch.arange(4))}
    before = state(model)
    run = trainer()
    run.fit(model, batches(batch, batch))
    assert run.global_step == 2
    assert {n for n, _ in model.named_parameters()} <= moved(before, state(model))


def test_reconstruction_errors_are_predicted(tmp_path: Path) -> None:
    model, data = _autoencoder(), _data(eval_batch_size=700)
    trainer([PredictionWriter(tmp_path)]).predict(model, data, return_predictions=False)
    rows = list(csv.reader((tmp_path / "predictions.csv").open()))
    assert (rows[0], len(rows)) == (["path", "reconstruction_error"], 2001)
    x = data.on_after_batch_transfer(next(iter(data.predict_dataloader())), 0).x
    with torch.no_grad():
        expected = ((model.eval()(x) - x) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor([float(r[1]) for r in rows[1:701]]), expected, rtol=1e-4, atol=1e-6)


def test_one_batch_for_a_try_leaves_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli("fit", "autoencoder", "--trainer.fast_dev_run=true")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("settings", [{"noise": -0.1}, {"hidden": 1.0}, {"patch": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"give noise >= 0, 0 <= hidden < 1 and patch >= 1"):
        AutoencoderModule(**settings)
