"""Hidden tokens: which ones, what stands in their place, and that published heads give what transformers gives."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from sft_lightning import AutoencoderModule
from sft_lightning.data.batches import Labeled, Unlabeled
from sft_lightning.networks.encoder import FilledEntries
from sft_lightning.networks.text.masked_language import hide_tokens
from sft_lightning.networks.text.tokenizers import HashTokenizer, make_tokenizer
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec, select_inputs
from tests.networks.text.test_text_backbones import WORDS, read, write_bert

WORDS_SPEC = InputSpec("text", (16,), "int64", "words:50")


def make_texts(count: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (count, length), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(count) % length + 1
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_a_share_of_each_text_is_hidden_as_in_bert() -> None:
    x = make_texts(4000, 20)
    chance = torch.rand((3, 4000, 20), generator=torch.Generator().manual_seed(1))
    seen = hide_tokens(x, 0.25, chance, HashTokenizer(50))
    hidden = seen["targets"] >= 0
    count = x["attention_mask"].sum(1)
    assert torch.equal(hidden.sum(1), (0.25 * count).round().clamp_min(1).long())
    assert torch.equal(seen["targets"][hidden], x["input_ids"][hidden])
    assert not bool((hidden & (x["attention_mask"] == 0)).any())
    assert torch.equal(seen["input_ids"][~hidden], x["input_ids"][~hidden])
    shown, true = seen["input_ids"][hidden], x["input_ids"][hidden]
    shares = [float(part.double().mean()) for part in (shown == 0, shown == true)]
    assert shares == pytest.approx([0.8 + 0.1 / 50, 0.1 + 0.1 / 50], abs=0.01)
    assert int(shown.max()) == 49
    by_place = hidden[count == 20].double().mean(0)
    assert float(by_place.max() - by_place.min()) < 0.15


def test_marks_are_never_hidden(tmp_path: Path) -> None:
    write_bert(tmp_path, WORDS)
    spec, x = read(f"hf/{tmp_path}")
    model = AutoencoderModule(f"hf/{tmp_path}", spec, hidden=0.99)
    seen = model.encoder.corrupt(x, 0, 0.99, 4, torch.Generator().manual_seed(0))
    assert {*seen["targets"].unique().tolist()} & {2, 3} == set()
    assert torch.equal(seen["targets"] >= 0, x["input_ids"] >= 5)


def test_a_published_head_gives_what_its_library_gives(tmp_path: Path) -> None:
    write_bert(tmp_path, WORDS)
    torch.manual_seed(1)
    theirs = BertForMaskedLM(BertConfig.from_pretrained(tmp_path)).eval()
    theirs.save_pretrained(tmp_path)
    name = f"hf/{tmp_path}"
    spec, x = read(name)
    model = AutoencoderModule(name, spec, hidden=0.5, weights="default").eval()
    seen = model.encoder.corrupt(x, 0, 0.5, 4, torch.Generator().manual_seed(0))
    filled = model(seen)
    logits = theirs(input_ids=seen["input_ids"], attention_mask=x["attention_mask"]).logits[seen["targets"] >= 0]
    torch.testing.assert_close(filled.logits, logits, rtol=1e-4, atol=1e-5)
    embedding = model.encoder.net.get_input_embeddings().weight  # type: ignore[operator]
    assert any(parameter is embedding for parameter in model.decoder.parameters())
    drawn = AutoencoderModule(name, spec, hidden=0.5).eval()
    assert not torch.allclose(drawn(seen).logits, filled.logits)


def test_loss_errors_and_accuracy_are_those_of_hidden_tokens() -> None:
    torch.manual_seed(0)
    model = AutoencoderModule("small_transformer", WORDS_SPEC, hidden=0.5).eval()
    x = make_texts(6, 8)
    result = model.step({"unlabeled": Unlabeled(x, torch.arange(6), 3)})
    seen = model.encoder.corrupt(x, 0, 0.5, 4, torch.Generator().manual_seed(3))
    assert isinstance(filled := model(seen), FilledEntries)
    hidden = seen["targets"] >= 0
    tokens = model.encoder.net({key: seen[key] for key in ("input_ids", "attention_mask")})
    table = model.encoder.net.embedding.tokens.weight  # type: ignore[union-attr]
    scores = model.decoder.layer(tokens) @ table.T  # type: ignore[operator]
    errors = F.cross_entropy(scores.flatten(0, 1), x["input_ids"].flatten(), reduction="none").view_as(hidden)
    assert result.loss.item() == pytest.approx(errors[hidden].mean().item(), rel=1e-5)
    right = scores.argmax(2) == x["input_ids"]
    assert float(result.logs["masked_accuracy"]) == pytest.approx(float(right[hidden].double().mean()))
    assert len(filled.entries) == int(hidden.sum())
    result.loss.backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP would wait for one that is not used
    predicted = model.predict_step(Labeled(x, torch.zeros(6), torch.arange(6)), 0)["reconstruction_error"]
    fixed = model.encoder.corrupt_evaluated(x, 0.5, torch.arange(6))
    again = model(fixed)
    own = F.cross_entropy(again.logits[again.examples == 5], again.entries[again.examples == 5])
    assert predicted[5].item() == pytest.approx(own.item(), rel=1e-5)


def test_an_evaluation_hides_the_same_whatever_the_batch() -> None:
    model = AutoencoderModule("small_transformer", WORDS_SPEC, hidden=0.3)
    x, indices = make_texts(9, 12), torch.tensor([4, 1, 7, 0, 2, 3, 5, 6, 8])
    whole = model.encoder.corrupt_evaluated(x, 0.3, indices)
    few = {name: t[:5, :5] for name, t in select_inputs(x, slice(5)).items()}
    part = model.encoder.corrupt_evaluated(few, 0.3, indices[:5])
    assert all(torch.equal(part[name], whole[name][:5, :5]) for name in ("input_ids", "targets"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "hidden is 0, but an autoencoder of texts learns to fill hidden tokens"),
        ({"hidden": 0.15, "noise": 0.1}, r"noise is 0\.1, which texts cannot have"),
        ({"hidden": 0.15, "patch": 4}, "patch is 4, but tokens of texts are hidden one by one: leave it out"),
        ({"hidden": 0.15, "network": "fasttext"}, "'fasttext' has no decoder"),
    ],
)
def test_other_corruptions_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AutoencoderModule(**{"network": "small_transformer", "input_spec": WORDS_SPEC, **settings})  # type: ignore[arg-type]


def test_examples_for_people_are_whole_hidden_and_filled(tmp_path: Path) -> None:
    write_bert(tmp_path, WORDS)
    name = f"hf/{tmp_path}"
    spec, x = read(name)
    model = AutoencoderModule(name, spec, hidden=0.3).eval()
    hidden = model.encoder.corrupt_evaluated(x, 0.3, torch.arange(3))
    filled = model(hidden)
    rows = filled.make_rows()
    at = hidden["targets"] >= 0
    assert torch.equal(rows[0]["input_ids"], x["input_ids"])
    assert torch.equal(rows[1]["input_ids"], hidden["input_ids"])
    assert torch.equal(rows[2]["input_ids"][at], filled.logits.argmax(1))
    assert torch.equal(rows[2]["input_ids"][~at], x["input_ids"][~at])
    assert make_tokenizer(name).decode([2, 5, 4, 7, 3]) == "[CLS] the … sat [SEP]"  # the file declares no marks
