"""Encoders of texts: padding has no effect, and published ones give what transformers gives."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from sft_lightning.data.text.storage import Encoding
from sft_lightning.data.text.views import TextView, TextViews
from sft_lightning.networks.adapters import LoRA, merge_weights
from sft_lightning.networks.blocks import split_blocks
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.text.tokenizers import make_tokenizer
from sft_lightning.networks.weights import write_weights
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec, concatenate_inputs, select_inputs

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran"]
TEXTS = ["the cat sat on the mat", "a dog ran", "the dog and the cat ran and sat on a mat"]


def write_bert(made: Path, words: list[str], positions: int = 128) -> None:
    """Write a small BERT in the form of Hugging Face, with random weights and its tokenizer."""
    torch.manual_seed(0)
    known = [*SPECIAL, *words]
    config = BertConfig(
        vocab_size=len(known), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=positions,
    )  # fmt: skip
    BertModel(config).save_pretrained(made)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(made / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT."""
    made = tmp_path_factory.mktemp("models") / "bert"
    write_bert(made, WORDS, 40)
    return made


def read(tokenizer: str, length: int = 16) -> tuple[InputSpec, dict[str, Tensor]]:
    encoding = Encoding(make_tokenizer(tokenizer), length)
    views = TextViews(encoding.tokenizer, TextView(), TextView())
    spec = InputSpec("text", (length,), "int64", encoding.tokenizer.name)
    return spec, views.prepare(encoding.encode([(text,) for text in TEXTS]))


ENCODERS = [
    "bag_of_words",
    "fasttext",
    "small_transformer",
    "small_transformer:attention",
    "hf",
    "hf:cls",
    "hf:attention",
]


@pytest.mark.parametrize("name", ENCODERS)
def test_features_do_not_depend_on_the_other_texts_of_a_batch(name: str, folder: Path) -> None:
    tokenizer = f"hf/{folder}" if name.startswith("hf") else "words:500"
    spec, x = read(tokenizer)
    encoder, _ = build_encoder(name.replace("hf", tokenizer), spec)
    encoder.eval()
    features = encoder(x)
    assert features.shape == (3, encoder.num_features)
    alone = encoder({key: t[1:2, : int(x["attention_mask"][1].sum())] for key, t in x.items()})
    assert torch.allclose(features[1:2], alone, atol=1e-6)
    longer = concatenate_inputs([x, {key: torch.ones(1, 16, dtype=torch.int64) for key in x}])
    assert torch.allclose(encoder(longer)[:3], features, atol=1e-6)
    assert not torch.allclose(features[0], features[2])
    assert encoder(encoder.make_example()).shape == (1, encoder.num_features)


@pytest.mark.parametrize("name", ["small_transformer", "hf:cls"])
def test_an_evaluation_encodes_texts_of_similar_length_together(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = f"hf/{folder}" if name.startswith("hf") else "words:500"
    encoding = Encoding(make_tokenizer(tokenizer), 32)
    texts = [(" ".join(WORDS[(i + k) % 9] for k in range(1 + 7 * i % 27)),) for i in range(41)]
    x = TextViews(encoding.tokenizer, TextView(), TextView()).prepare(encoding.encode(texts))
    encoder = build_encoder(name.replace("hf", tokenizer), InputSpec("text", (32,), "int64", tokenizer))[0].eval()
    whole = encoder(x)  # with gradients
    seen: list[tuple[int, ...]] = []
    own: Any = encoder.encode_tokens

    def encode(piece: dict[str, Tensor]) -> Tensor:
        seen.append(tuple(piece["input_ids"].shape))
        tokens: Tensor = own(piece)
        return tokens

    monkeypatch.setattr(encoder, "encode_tokens", encode)
    with torch.no_grad():
        features = encoder(x)
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-5)
    lengths = sorted(x["attention_mask"].sum(1).tolist())
    assert seen == [(16, lengths[15]), (16, lengths[31]), (9, lengths[40])]


def test_pairs_of_words_tell_their_order() -> None:
    spec = InputSpec("text", (4,), "int64", "words:500")
    encoder = build_encoder("fasttext", spec)[0].eval()
    x = {"input_ids": torch.tensor([[7, 9], [9, 7]]), "attention_mask": torch.ones(2, 2, dtype=torch.int64)}
    first, second = encoder(x)
    assert (first - second).abs().max() > 0.1


def test_weights_of_words_are_those_of_scikit_learn() -> None:
    spec, x = read("words:1048576")
    encoder, _ = build_encoder("tfidf", spec)
    with pytest.raises(InputError, match="backbone 'tfidf' knows no words yet: use it with FrozenFeatureClassifier"):
        encoder(x)
    encoder.fit_inputs(iter([select_inputs(x, slice(2)), select_inputs(x, slice(2, 3))]))
    model = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    expected = torch.from_numpy(model.fit_transform(TEXTS).toarray()).float()
    torch.testing.assert_close(encoder(x).sort(1).values[:, -9:], expected.sort(1).values)
    torch.testing.assert_close(encoder(x) @ encoder(x).T, expected @ expected.T)
    again, _ = build_encoder("tfidf", spec)
    again.load_state_dict(encoder.state_dict())
    other = {"input_ids": x["input_ids"] + 1, "attention_mask": x["attention_mask"]}  # words of no training text
    assert torch.equal(again(x), encoder(x))
    assert not bool(again(other).any())


def test_published_encoders_give_what_their_library_gives(folder: Path) -> None:
    spec, x = read(f"hf/{folder}")
    theirs = BertModel.from_pretrained(folder).eval()
    assert x["input_ids"][1].tolist()[:5] == [2, 9, 12, 13, 3]
    with torch.no_grad():
        hidden = theirs(**x).last_hidden_state
        mean, _ = build_encoder(f"hf/{folder}", spec, "default")
        first, _ = build_encoder(f"hf/{folder}:cls", spec, "default")
        assert torch.allclose(first.eval()(x), hidden[:, 0], atol=1e-6)
        ours = mean.eval()(x)
    for i, count in enumerate(x["attention_mask"].sum(1).tolist()):
        assert torch.allclose(ours[i], hidden[i, :count].mean(0), atol=1e-6)
    drawn, _ = build_encoder(f"hf/{folder}", spec)
    assert not torch.allclose(drawn.eval()(x), ours)


@pytest.mark.parametrize("name", ["small_transformer", "hf"])
def test_attention_starts_as_the_mean_and_weighs_tokens(name: str, folder: Path, tmp_path: Path) -> None:
    tokenizer = f"hf/{folder}" if name == "hf" else "words:500"
    spec, x = read(tokenizer)
    torch.manual_seed(0)
    mean = build_encoder(name.replace("hf", tokenizer), spec)[0].eval()
    write_weights(tmp_path / "encoder.safetensors", mean.state_dict(), {"part": "backbone", **mean.describe()})
    encoder = build_encoder(f"{name.replace('hf', tokenizer)}:attention", spec, str(tmp_path))[0].eval()
    torch.testing.assert_close(encoder(x), mean(x))
    query = encoder.net.get_parameter("attention.query")
    assert split_blocks(encoder.net)[-1].parameters[-1] is query
    assert len(split_blocks(encoder.net)) == len(split_blocks(mean.net))
    tokens = encoder(x, is_pooled=False)
    torch.nn.init.normal_(query, std=5.0)
    pooled = encoder(x)
    for i, count in enumerate(x["attention_mask"].sum(1).tolist()):
        weights = (tokens[i, :count] @ query / encoder.num_features**0.5).softmax(0)
        torch.testing.assert_close(pooled[i], weights @ tokens[i, :count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small_transformer", "hf"])
def test_attention_is_learned_beside_an_adapter(name: str, folder: Path) -> None:
    tokenizer = f"hf/{folder}" if name == "hf" else "words:500"
    spec, x = read(tokenizer)
    torch.manual_seed(0)
    encoder = build_encoder(f"{name.replace('hf', tokenizer)}:attention", spec)[0]
    plain = copy.deepcopy(encoder).eval()
    adapter = LoRA(rank=2)
    adapter.apply(encoder)
    learned = adapter.list_parameters(encoder.net)
    query = encoder.net.get_parameter("attention.query")
    assert any(p is query for p in learned)
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for p in learned}
    encoder.eval()(x).square().sum().backward()
    assert query.grad is not None
    assert bool(query.grad.any())
    assert all(p.grad is not None for p in learned)
    with torch.no_grad():
        for p in learned:
            p.add_(torch.randn_like(p))
        plain.load_state_dict(merge_weights(encoder.state_dict()))
        torch.testing.assert_close(plain(x), encoder(x), rtol=1e-3, atol=1e-4)
    adapter.set_trainable(encoder.net, False)
    assert not query.requires_grad


def test_second_texts_get_a_number_of_their_own_where_the_model_has_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pairs")
    rust = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    rust.save(str(tmp_path / "pairs" / "tokenizer.json"))
    name = f"hf/{tmp_path / 'pairs'}"
    encoding = Encoding(make_tokenizer(name), 16)
    raw = encoding.encode([("a cat", "the dog ran"), ("a mat",)])
    x = TextViews(encoding.tokenizer, TextView(), TextView()).prepare(raw)
    ours = build_encoder(name, InputSpec("text", (16,), "int64", name), "default")[0].eval()
    theirs = BertModel.from_pretrained(folder).eval()
    given = rust.encode("a cat", "the dog ran")
    with torch.no_grad():
        ids, types = (torch.tensor([values]) for values in (given.ids, given.type_ids))
        expected = theirs(input_ids=ids, token_type_ids=types).last_hidden_state.mean(1)
        assert torch.allclose(ours(x)[:1], expected, atol=1e-6)
        without = theirs(input_ids=ids).last_hidden_state.mean(1)
    assert not torch.allclose(expected, without, atol=1e-3)


def test_pairs_of_texts_are_joined_as_the_tokenizer_joins_them(folder: Path) -> None:
    raw = Encoding(make_tokenizer(f"hf/{folder}"), 8).encode([("a cat", "the dog")])
    assert raw.tolist() == [[2, 9, 6, 3, 5, 12, 3, -1]]


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    spec, _ = read("words")
    name = f"hf/{folder}"
    with pytest.raises(InputError, match=f"data has those of 'words': set data.tokenizer to {name}"):
        build_encoder(name, spec)
    own = InputSpec("text", (64,), "int64", name)
    with pytest.raises(InputError, match=r"max_length is 64, and backbone .* takes 40 tokens"):
        build_encoder(name, own)
    with pytest.raises(InputError, match=r"ends with 'csl' \(did you mean 'cls'\?\)"):
        build_encoder(f"{name}:csl", own)
    with pytest.raises(InputError, match=r"'small_transformer:cls' ends with 'cls': give :mean or :attention"):
        build_encoder("small_transformer:cls", spec)
    with pytest.raises(InputError, match="'fasttext:mean' has features of whole texts alone"):
        build_encoder("fasttext:mean", spec)
    with pytest.raises(InputError, match=r"'fastext' is not known for texts \(did you mean 'fasttext'\?\)"):
        build_encoder("fastext", spec)
    with pytest.raises(InputError, match="nobody publishes weights of 'fasttext'"):
        build_encoder("fasttext", spec, "default")
    with pytest.raises(InputError, match="mean or std is set"):
        build_encoder("fasttext", spec, mean=0.5)
    with pytest.raises(InputError, match="neither a folder nor in the cache of Hugging Face: fetch it with"):
        make_tokenizer("hf/nobody/nothing")
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        make_tokenizer(f"hf/{tmp_path}")
    for length, texts in ((2, ("a",)), (3, ("a", "b"))):
        with pytest.raises(InputError, match=rf"max_length is {length}, and tokenizer .* adds {length} tokens"):
            make_tokenizer(name).encode([texts], length)
    with pytest.raises(InputError, match="give words, words:16384"):
        make_tokenizer("words:" + "9" * 5000)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        make_tokenizer(f"hf/{tmp_path}")


def test_places_of_roberta_begin_after_that_of_padding(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "roberta"
    shutil.copytree(folder, made)
    config = RobertaConfig(
        vocab_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=18, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(made)
    spec, x = read(f"hf/{made}", 17)
    with pytest.raises(InputError, match=r"max_length is 17, and backbone .* takes 16 tokens"):
        build_encoder(f"hf/{made}", spec)
    spec, x = read(f"hf/{made}", 16)
    long = {name: torch.full((1, 16), 4 if name == "input_ids" else 1) for name in x}
    assert build_encoder(f"hf/{made}", spec)[0](long).isfinite().all()


def test_code_and_pickles_of_a_folder_are_never_run(folder: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(folder, hostile)
    flag = tmp_path / "ran"
    (hostile / "model.py").write_text(f"open({str(flag)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((hostile / "config.json").read_text())
    config |= {"model_type": "unheard", "auto_map": {"AutoConfig": "model.Config", "AutoModel": "model.Model"}}
    (hostile / "config.json").write_text(json.dumps(config))
    spec = InputSpec("text", (16,), "int64", f"hf/{hostile}")
    with pytest.raises(InputError, match="cannot be loaded"):
        build_encoder(f"hf/{hostile}", spec, "default")
    assert not flag.exists()
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        build_encoder(f"hf/{pickled}", InputSpec("text", (16,), "int64", f"hf/{pickled}"), "default")


def test_weights_of_a_run_are_those_of_the_encoder(folder: Path, tmp_path: Path) -> None:
    spec, x = read("words:500")
    made: Encoder = build_encoder("small_transformer", spec)[0].eval()
    tensors = {name: t.contiguous() for name, t in made.net.state_dict().items()}
    write_weights(tmp_path / "encoder.safetensors", tensors, {"part": "encoder", **made.describe()})
    again = build_encoder("small_transformer", spec, str(tmp_path))[0].eval()
    assert torch.equal(made(x), again(x))
    assert torch.allclose(again(select_inputs(x, slice(0, 1))), again(x)[:1], atol=1e-6)
