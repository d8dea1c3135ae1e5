import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import nn

from sft_lightning import AutoencoderModule, FineTuneClassifier
from sft_lightning.networks.build import rebuild_encoder
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import load_into, read_weights, write_weights
from sft_lightning.utils.errors import InputError

SHAPE = (1, 28, 28)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_raw_torchvision_weights_load_with_any_prefix(tmp_path: Path, suffix: str, prefix: str) -> None:
    raw = {prefix + n: t for n, t in torchvision.models.resnet18().state_dict().items()}
    path = tmp_path / f"raw{suffix}"
    save_file(raw, path) if suffix == ".safetensors" else torch.save({"state_dict": raw}, path)
    backbone, _ = build_backbone("torchvision/resnet18", (3, 32, 32), str(path))
    assert all(torch.equal(t, raw[prefix + n]) for n, t in backbone.net.state_dict().items())


def test_raw_timm_weights_load_and_name_the_classifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = timm.create_model("resnet10t").state_dict()
    save_file(raw, tmp_path / "raw.safetensors")
    with caplog.at_level("INFO", "sft_lightning"):
        backbone, _ = build_backbone("resnet10t", (3, 32, 32), str(tmp_path / "raw.safetensors"))
    assert all(torch.equal(t, raw[n]) for n, t in backbone.net.state_dict().items())
    count = len(backbone.net.state_dict())
    assert f"{count} of {count} backbone tensors matched; classifier in the file: fc." in caplog.text


def test_encoder_file_rebuilds_a_backbone_with_identical_features(tmp_path: Path) -> None:
    made, _ = build_backbone("conv", SHAPE, mean=0.3, std=0.4)
    made(torch.rand(8, *SHAPE))  # running statistics that are not those of a new network
    write_weights(tmp_path / "encoder.safetensors", made.state_dict(), made.describe())
    again = rebuild_encoder(tmp_path)
    x = torch.rand(3, *SHAPE)
    assert torch.equal(again.eval()(x), made.eval()(x))


def test_file_without_description_cannot_be_rebuilt(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "encoder.safetensors")
    with pytest.raises(InputError, match="do not say which backbone"):
        rebuild_encoder(tmp_path)


@pytest.mark.parametrize("kind", ["checkpoint", "run", "autoencoder_run"])
def test_runs_and_checkpoints_provide_backbone_and_normalization(tmp_path: Path, kind: str) -> None:
    module: nn.Module
    if kind == "autoencoder_run":
        module = AutoencoderModule("conv", SHAPE)
        source = module.encoder
    else:
        module = FineTuneClassifier("conv", 3, SHAPE, mean=0.3, std=0.4)
        source = module.backbone
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    taken = FineTuneClassifier("conv", 5, SHAPE, weights=str(path if kind == "checkpoint" else tmp_path))
    assert _same(taken.backbone, source)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder without"):
        build_backbone("mlp", SHAPE, str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        build_backbone("mlp", SHAPE, str(tmp_path / "none.pt"))


def test_match_report_lists_loaded_missing_and_unused_tensors() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    matched = load_into(
        network,
        {
            "x.0.weight": torch.ones(3, 2),
            "x.0.bias": torch.ones(9),
            "x.1.weight": torch.ones(4, 3),
            "x.7": torch.ones(1),
        },
        "file",
    )
    assert (matched.prefix, matched.taken) == ("x.", ["0.weight", "1.weight"])
    assert (matched.other_shape, matched.missing, matched.unused) == (["0.bias (9 there, 3 here)"], ["1.bias"], ["x.7"])
    assert str(matched) == (
        "2 of 4 backbone tensors matched; not in the file, so randomly initialized: 1.bias; of another shape, so "
        "randomly initialized: 0.bias (9 there, 3 here); in the file but not used: x.7"
    )
    assert torch.equal(network.state_dict()["0.weight"], torch.ones(3, 2))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors' fit nothing: the file has 52 tensors"):
        build_backbone("resnet18", (3, 32, 32), str(tmp_path / "other.safetensors"))


def test_batch_counter_alone_does_not_count_as_a_match() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(InputError, match="fit nothing"):
        load_into(network, {"1.num_batches_tracked": torch.tensor(5)}, "file")


def test_encoder_of_another_backbone_is_refused(tmp_path: Path) -> None:
    made, _ = build_backbone("conv", SHAPE)
    write_weights(tmp_path / "encoder.safetensors", made.state_dict(), made.describe())
    with pytest.raises(InputError, match="are of backbone 'conv', asked for is 'mlp': set backbone: conv"):
        build_backbone("mlp", SHAPE, str(tmp_path))


def test_pickle_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    for name, save in (("zip.pt", torch.save), ("raw.pkl", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        save({"state_dict": {"a": Evil(tmp_path / "ran")}}, tmp_path / name)
        with pytest.raises(InputError, match="could run code"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["whole.safetensors", "zip.pt", "legacy.pt"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path, tensors = tmp_path / name, {"a": torch.rand(8), "b": torch.rand(3, 5)}
    if name == "whole.safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=name == "zip.pt")
    content = path.read_bytes()
    for end in range(0, len(content) - 1, 7):
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match=f"{name}' (is damaged|cannot be read)"):
            read_weights(path)


def test_file_without_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no tensors by name"):
        read_weights(tmp_path / "list.pt")


def test_head_is_loaded_only_if_its_classes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FineTuneClassifier("mlp", 3, SHAPE)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.ckpt")
    names = {"hyper_parameters": {"class_names": ["a", "b", "c"]}}
    torch.save({"state_dict": source.state_dict(), **names}, tmp_path / "named.ckpt")
    with caplog.at_level("INFO"):
        named = FineTuneClassifier("mlp", 3, SHAPE, weights=str(tmp_path / "named.ckpt"))
        assert _same(named.head, source.head)
        assert named.class_names == ["a", "b", "c"]
        assert "The head of the weights was taken over, too." in caplog.text
        assert not _same(FineTuneClassifier("mlp", 3, SHAPE, weights=str(tmp_path / "a.ckpt")).head, source.head)
        assert "was replaced by a new one: " in caplog.text
        FineTuneClassifier("mlp", 5, SHAPE, weights=str(tmp_path / "a.ckpt"))
    assert "head of the weights has shape (3, 32) and was replaced by a new one of (5, 32)" in caplog.text


def test_compiled_backbone_keeps_the_names_of_its_tensors() -> None:
    plain, compiled = (FineTuneClassifier("mlp", 3, SHAPE, compile=c).state_dict().keys() for c in (False, True))
    assert plain == compiled


def test_more_networks_than_the_recompile_limit_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    real, passes = torch.compile, []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        passes.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda module, mode: real(module, backend=backend))
    for side in range(4, 16):
        model = FineTuneClassifier("mlp", 3, (1, side, side), compile=True)
        model.backbone(torch.rand(2, 1, side, side))
    assert len(passes) == 12
