"""Pages of runs on texts: which words are marked, and that every text is shown as it was written."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sft_lightning.__main__ import main
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.text.token_encoder import TextEncoder, average_tokens
from sft_lightning.networks.text.tokenizers import HashTokenizer, make_tokenizer
from sft_lightning.report.word_relevance import WordRelevance
from sft_lightning.utils.inputs import InputSpec
from tests.browser import Browser
from tests.modality.test_texts import WORDS, make_texts
from tests.networks.text.test_text_backbones import write_bert

ODD = [
    "القمر والنجوم <b>bread</b> في السماء",
    "soup 🍞 <script>alert(1)</script> & dinner",
    "the cheese, of the moon {{x}}",
]
SPEC = InputSpec("text", (16,), "int64", "words:500")


class Mean(TextEncoder):
    """Mean of embeddings, of which each token has its exact share."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.num_features, self.input_spec = 8, spec
        self.table, self.places = nn.Embedding(500, 8), nn.Embedding(16, 8)
        self.net = nn.ModuleList([self.table, self.places])

    def forward(self, x: Any) -> torch.Tensor:
        ids = x["input_ids"]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        return average_tokens(self.table(ids) + 0 * self.places(places), x["attention_mask"])


def explain(backbone: Any) -> tuple[WordRelevance, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    head = {
        "weight": torch.randn(3, backbone.num_features, generator=generator),
        "bias": torch.randn(3, generator=generator),
    }
    classify = lambda features: F.linear(features, head["weight"], head["bias"])  # noqa: E731
    data = SimpleNamespace(input_spec=SPEC)
    evaluation: Any = SimpleNamespace(backbone=backbone.eval(), head=head, classify=classify, data=data)
    return WordRelevance(evaluation), head


X = {
    "input_ids": torch.tensor([[5, 7, 9, 400], [3, 8, 0, 0], [6, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]),
}
CLASSES = torch.tensor([2, 0, 1])


def test_gradients_give_each_token_its_share() -> None:
    torch.manual_seed(0)
    backbone = Mean(SPEC)
    explainer, head = explain(backbone)
    embedded = backbone.table(X["input_ids"])
    shares = (embedded * head["weight"][CLASSES][:, None]).sum(2) * X["attention_mask"]
    expected = shares / X["attention_mask"].sum(1, keepdim=True)
    for rows in (slice(0, 3), slice(1, 2)):
        found = explainer.measure({name: t[rows] for name, t in X.items()}, CLASSES[rows])
        torch.testing.assert_close(found, expected[rows].detach())


def test_where_tokens_are_not_embedded_by_themselves_each_is_left_out() -> None:
    for name in ("fasttext", "bag_of_words"):
        torch.manual_seed(0)
        explainer, _ = explain(build_encoder(name, SPEC)[0])
        found = explainer.measure(X, CLASSES)
        for x, label, row in (({n: t[:1] for n, t in X.items()}, 2, 0), ({n: t[1:2, :2] for n, t in X.items()}, 0, 1)):
            whole = explainer._classify(x)[0, label]
            for k in range(x["input_ids"].shape[1]):
                left = {n: torch.cat([t[:, :k], t[:, k + 1 :]], 1) for n, t in x.items()}
                expected = whole - explainer._classify(left)[0, label]
                torch.testing.assert_close(found[row, k], expected.detach(), rtol=1e-4, atol=1e-5)
        assert not found[1, 2:].any()


def test_published_encoders_are_explained_by_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bert(tmp_path / "bert", ["the", "soup"])
    spec = InputSpec("text", (16,), "int64", f"hf/{tmp_path / 'bert'}")
    explainer, _ = explain(build_encoder(spec.encoding, spec, "default")[0])
    monkeypatch.setattr(explainer, "_leave_out", None)  # would be called
    x = {name: t.clamp_max(6) for name, t in X.items()}
    assert explainer.measure(x, CLASSES).abs().sum(1).min() > 0


@pytest.mark.parametrize("texts", [("İstanbul'da ΣΑΣ, 2 çay", "and  Bread"), ("🍞 soup",), ("",)])
def test_tokens_are_found_where_they_stand(texts: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer, joined = HashTokenizer(), "\n".join(texts)
    ids, _ = tokenizer.encode([texts], 32)
    spans = tokenizer.locate(texts, 32)
    assert len(spans) == (ids >= 0).sum()
    for number, (start, end) in zip(ids[0].tolist(), spans, strict=False):
        word = joined[start:end].lower()
        assert number == tokenizer._number(word) or "i̇" in word or word == "̇"
    write_bert(tmp_path / "bert", ["soup"])
    tokenizer = make_tokenizer(f"hf/{tmp_path / 'bert'}")  # type: ignore[assignment]
    if texts[0]:
        spans = tokenizer.locate(texts, 32)
        assert (spans[0], spans[-1]) == ((0, 0), (0, 0))
        last = joined[spans[-2][0] : spans[-2][1]]
        assert joined.endswith(last)
        assert last


def test_a_page_shows_texts_as_they_were_written(workdir: Path) -> None:
    rows = [(text, label, ("train", "val", "test", "unlabeled")[(i // 3) % 4]) for i, (text, label) in enumerate(
        make_texts(96, 0.5)
    )]  # fmt: skip
    rows = [(text, label if split != "unlabeled" else "", split) for text, label, split in rows]
    rows += [(text, "sport", "test") for text in ODD]
    with Path("texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    words = ["--model=FrozenFeatureClassifier", "--model.backbone=bag_of_words", "--data=TextDataModule"]
    assert main(["fit", "--run_name=run", *words, "--data.source=texts.csv"]) == 0
    folder = Path("lightning_logs/run/version_0")
    assert main(["report", str(folder), "--label_next=5"]) == 0
    with (folder / "label_next.csv").open(newline="", encoding="utf-8") as file:
        following = list(csv.DictReader(file))
    texts = {f"line {i}": text for i, (text, *_) in enumerate(rows, 2)}
    assert len(following) == 5
    assert all(row["text"] == texts[row["id"]] for row in following)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Words that support the prediction" in page
    assert "Grad-CAM" not in page
    if shutil.which("chromium") is None:
        pytest.skip("no chromium to look at the page with")
    with Browser(workdir / "profile") as browser:
        browser.open((folder / "report.html").resolve().as_uri())
        assert browser.evaluate("document.querySelectorAll('script').length") == 0
        shown = browser.evaluate(
            "[...document.querySelectorAll('.tile > q')].map(q => "
            "[q.textContent, getComputedStyle(q).direction, [...q.querySelectorAll('mark')].map(m => m.textContent)])"
        )
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    by_text = {text: (direction, marks) for text, direction, marks in shown}
    assert set(ODD) <= set(by_text)  # mistakes, in which the words of other classes are marked
    assert by_text[ODD[0]][0] == "rtl"
    assert by_text[ODD[1]][0] == "ltr"
    assert by_text[ODD[0]][1] == ["bread"] or "bread" in by_text[ODD[0]][1]
    strongest = [marks for text, (_, marks) in by_text.items() if text not in ODD and marks]
    known = {word for own in WORDS.values() for word in own}
    assert sum(word in known for marks in strongest for word in marks) > 0.6 * sum(map(len, strongest))
