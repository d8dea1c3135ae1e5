"""Encoders of recordings: windows are averaged, and published ones give what their library gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)  # fmt: skip

from sft_lightning.networks.audio.log_mel import Sound, compute_mel, scale_log
from sft_lightning.networks.build import adapt_spec, build_encoder, rebuild_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import write_weights
from sft_lightning.utils.errors import InputError

SOUND = Sound(16_000, 16_000, 512, 256, 32)
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (10, 8, 4), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 8,
}  # fmt: skip


def write_model(folder: Path, kind: str) -> Path:
    """Write a small random model in the form of Hugging Face with its feature extractor."""
    torch.manual_seed(0)
    model: Any
    reads: Any = Wav2Vec2FeatureExtractor(do_normalize=True)
    if kind == "wav2vec2":
        model = Wav2Vec2Model(Wav2Vec2Config(**SMALL))
    elif kind == "wav2vec2_layer":
        model = Wav2Vec2Model(Wav2Vec2Config(**SMALL, feat_extract_norm="layer", do_stable_layer_norm=True))
        reads = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    elif kind == "hubert":
        model = HubertModel(HubertConfig(**SMALL))
    elif kind == "ast":
        sizes = {key: SMALL[key] for key in [*SMALL][:4]}
        model = ASTModel(ASTConfig(**sizes, max_length=128, num_mel_bins=32))
        reads = ASTFeatureExtractor(max_length=128, num_mel_bins=32)
    else:
        config = WhisperConfig(
            vocab_size=60, num_mel_bins=80, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=48, max_source_positions=100,
            pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
        )  # fmt: skip
        model, reads = WhisperModel(config), WhisperFeatureExtractor(chunk_length=2)
    model.save_pretrained(folder)
    reads.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small models by kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(root / kind, kind) for kind in ("wav2vec2", "wav2vec2_layer", "hubert", "ast", "whisper")}


def make_waveforms() -> Tensor:
    """Return a whole window, and one whose second half is padding."""
    x = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1))
    x[1, 8000:] = 0
    return x


def compute_theirs(kind: str, folder: Path, x: Any) -> Tensor:
    """Return the mean features of one recording without padding, by the library."""
    reads: Any = transformers.AutoFeatureExtractor.from_pretrained(folder)
    net: Any = transformers.AutoModel.from_pretrained(folder).eval()
    given = dict(reads(x, sampling_rate=16_000, return_tensors="pt"))
    with torch.no_grad():
        if kind == "whisper":
            frames = net.get_encoder()(given["input_features"]).last_hidden_state[:, : -(-len(x) // 320)]
        else:
            frames = net(**given).last_hidden_state
    mean: Tensor = frames[0].mean(0)
    return mean


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2_layer", "hubert", "ast", "whisper"])
def test_published_encoders_give_what_their_library_gives(kind: str, folders: dict[str, Path]) -> None:
    name = f"hf/{folders[kind]}"
    encoder = build_encoder(name, adapt_spec(name, SOUND.spec), "default")[0].eval()
    x = make_waveforms()
    with torch.no_grad():
        ours = encoder(x[:, None])
        assert torch.allclose(encoder(x[None]), ours.mean(0, keepdim=True), atol=1e-5)
        assert encoder(encoder.make_example()).shape == (1, encoder.num_features)
    assert torch.allclose(ours[0], compute_theirs(kind, folders[kind], x[0].numpy()), atol=2e-4)
    if kind == "wav2vec2_layer":  # of the others, padding reaches what is not padding, as in the library
        assert torch.allclose(ours[1], compute_theirs(kind, folders[kind], x[1, :8000].numpy()), atol=2e-4)
    drawn = build_encoder(name, adapt_spec(name, SOUND.spec))[0].eval()
    assert not torch.allclose(drawn(x[:, None]), ours)


@pytest.mark.parametrize("kind", ["wav2vec2", "ast", "whisper"])
def test_training_repeats_and_reaches_every_weight(kind: str, folders: dict[str, Path]) -> None:
    name = f"hf/{folders[kind]}"
    encoder = build_encoder(name, adapt_spec(name, SOUND.spec), "default")[0].train()
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    encoder(make_waveforms()[:, None]).sum().backward()
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]
    idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_what_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    waveform = SOUND.as_waveform().spec
    name = f"hf/{folders['ast']}"
    with pytest.raises(InputError, match=r"reads waveforms, and the data has spectrograms: set data\.encoding"):
        build_encoder(name, SOUND.spec)
    with pytest.raises(InputError, match=r"reads spectrograms, and the data has waveforms: set data\.encoding"):
        build_encoder("resnet8", waveform)
    with pytest.raises(InputError, match="takes 16000 Hz, and sample_rate is 8000: set it to 16000"):
        build_encoder(name, Sound(8000, 8000, mels=0).spec)
    with pytest.raises(InputError, match=r"takes windows of 1\.295 s, and seconds is 2: lower it"):
        build_encoder(name, Sound(16_000, 32_000, mels=0).spec)
    with pytest.raises(InputError, match="has no token of a whole recording"):
        build_encoder(f"hf/{folders['wav2vec2']}:cls", waveform)
    with pytest.raises(InputError, match=r"backbone 'log_mel' has none: leave it out"):
        build_encoder("log_mel", SOUND.spec, "default")
    with pytest.raises(InputError, match="mean or std is set"):
        build_encoder("log_mel", SOUND.spec, mean=0.5)
    with pytest.raises(InputError, match=r"backbone 'resnet9' is unknown \(did you mean 'resnet8'"):
        build_encoder("resnet9", SOUND.spec)
    small = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(small).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a model of type 'bert': give one of wav2vec2, hubert"):
        build_encoder(f"hf/{tmp_path}", waveform)


def test_code_and_pickles_of_a_folder_are_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    hostile, flag = tmp_path / "hostile", tmp_path / "ran"
    shutil.copytree(folders["hubert"], hostile)
    (hostile / "model.py").write_text(f"open({str(flag)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((hostile / "config.json").read_text())
    config |= {"model_type": "unheard", "auto_map": {"AutoConfig": "model.Config", "AutoModel": "model.Model"}}
    (hostile / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        build_encoder(f"hf/{hostile}", SOUND.as_waveform().spec, "default")
    assert not flag.exists()
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["hubert"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        build_encoder(f"hf/{pickled}", SOUND.as_waveform().spec, "default")


@pytest.mark.parametrize("name", ["log_mel", "resnet8", "conv:flatten", "timm/resnet10t", "torchvision/squeezenet1_1"])
def test_features_are_the_mean_over_windows(name: str) -> None:
    encoder = build_encoder(name, SOUND.spec)[0].eval()
    x = torch.rand(2, 3, 32, 63, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        each = torch.stack([encoder(x[:, [k]]) for k in range(3)])
        features = encoder(x)
    assert features.shape == (2, encoder.num_features)
    means = slice(32 if name == "log_mel" else None)  # whose deviation is that of all frames
    assert torch.allclose(features[:, means], each.mean(0)[:, means], atol=1e-5)
    assert encoder(encoder.make_batch(2)).shape == features.shape


def test_statistics_do_not_depend_on_padding() -> None:
    encoder = build_encoder("log_mel", SOUND.spec)[0]
    x = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, torch.zeros(1, 8000)], 1)
    short, long = (encoder(scale_log(compute_mel(wave, SOUND))[:, None]) for wave in (x, padded))
    assert torch.allclose(short, long, atol=0.05)  # the frame where padding begins is half of each
    still = encoder(torch.zeros(1, 1, 32, 63))
    assert torch.equal(still, torch.zeros(1, 64))


def test_windows_are_reconstructed_one_by_one() -> None:
    encoder = build_encoder("conv", SOUND.spec)[0].eval()
    decoder = encoder.build_decoder().eval()
    x = torch.rand(2, 3, 32, 63)
    with torch.no_grad():
        whole, second = encoder.reconstruct(decoder, x), encoder.reconstruct(decoder, x[:, [1]])
    assert isinstance(whole, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert whole.shape == x.shape
    assert torch.allclose(whole[:, [1]], second, atol=1e-5)


def test_weights_of_a_run_are_those_of_the_encoder(tmp_path: Path) -> None:
    made: Encoder = build_encoder("resnet8", SOUND.spec)[0].eval()
    tensors = {name: t.contiguous() for name, t in made.state_dict().items()}
    write_weights(tmp_path / "encoder.safetensors", tensors, {"part": "encoder", **made.describe()})
    again = rebuild_encoder(tmp_path).eval()
    assert again.input_spec == SOUND.spec
    x = torch.rand(2, 1, 32, 63)
    assert torch.equal(made(x), again(x))
