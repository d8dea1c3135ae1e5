"""Views of token ids: seeds decide, marks stay, and bags equal those of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from sft_lightning.data.text.storage import Encoding
from sft_lightning.data.text.views import TextView, TextViews
from sft_lightning.networks.text.tokenizers import HashTokenizer, make_tokenizer
from sft_lightning.utils.errors import InputError

TEXTS = ["the cat sat on the mat", "a dog", "the dog and the cat and a bird sang all night long in the old tree"]


def make_views(view: TextView, has_frame: bool = False) -> tuple[TextViews, dict[str, Tensor], HashTokenizer]:
    tokenizer = HashTokenizer()
    tokenizer.has_frame = has_frame
    views = TextViews(tokenizer, TextView(), view)
    raw = Encoding(tokenizer, 32).encode([(text,) for text in TEXTS * 200])
    return views, views.prepare(raw), tokenizer


def count(x: dict[str, Tensor]) -> Tensor:
    return x["attention_mask"].sum(1)


def test_padding_is_cut_to_the_longest_text_of_the_batch() -> None:
    views, x, _ = make_views(TextView())
    assert x["input_ids"].shape == x["attention_mask"].shape == (600, 16)
    assert count(x)[:3].tolist() == [6, 2, 16]
    assert views.show({name: t[:3] for name, t in x.items()}) == TEXTS
    assert views.weak(x, 3) is x
    assert not views.has_strong


def test_seeds_decide_and_texts_differ() -> None:
    views, x, _ = make_views(TextView(delete=0.3, swap=0.3))
    first, again, other = views.strong(x, 5), views.strong(x, 5), views.strong(x, 6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["input_ids"], other["input_ids"])
    assert not torch.equal(first["input_ids"][2], first["input_ids"][5])  # the same text twice


@pytest.mark.parametrize("has_frame", [False, True])
def test_shares_are_those_of_the_settings(has_frame: bool) -> None:
    ends = 2 if has_frame else 0
    views, x, _ = make_views(TextView(delete=0.2), has_frame)
    deleted = views.strong(x, 0)
    long = slice(2, None, 3)
    assert float(count(deleted)[long].double().mean()) == pytest.approx(16 - 0.2 * (16 - ends), abs=0.3)
    views, x, tokenizer = make_views(TextView(hide=0.2), has_frame)
    hidden = views.strong(x, 0)
    share = float((hidden["input_ids"][long] == tokenizer.mask_id).double().mean())
    assert share == pytest.approx(0.2 * (16 - ends) / 16, abs=0.02)
    assert torch.equal(count(hidden), count(x))
    views, x, tokenizer = make_views(TextView(span=0.25), has_frame)
    spans = views.strong(x, 0)["input_ids"][long] == tokenizer.mask_id
    edges = (spans[:, 1:] != spans[:, :-1]).sum(1) + spans[:, 0] + spans[:, -1]
    assert set(edges.tolist()) <= {0, 2}  # one piece
    assert spans.sum(1).double().mean() > 3


def test_swaps_change_the_order_alone_and_frames_stay() -> None:
    views, x, _ = make_views(TextView(swap=0.5), has_frame=True)
    swapped = views.strong(x, 0)["input_ids"]
    assert torch.equal(swapped.sort(1).values, x["input_ids"].sort(1).values)
    assert (swapped != x["input_ids"]).any()
    last = count(x)[:, None] - 1
    assert torch.equal(swapped[:, 0], x["input_ids"][:, 0])
    assert torch.equal(swapped.gather(1, last), x["input_ids"].gather(1, last))


def test_a_text_keeps_a_token() -> None:
    views, x, _ = make_views(TextView(delete=1.0))
    assert torch.equal(count(views.strong(x, 0)), count(x))


def test_tokens_stay_together_after_a_deletion() -> None:
    views, x, _ = make_views(TextView(delete=0.5))
    mask = views.strong(x, 0)["attention_mask"]
    assert bool((mask[:, 1:] <= mask[:, :-1]).all())


def test_bags_equal_those_of_scikit_learn() -> None:
    views, _, tokenizer = make_views(TextView())
    raw = Encoding(tokenizer, 32).encode([(text,) for text in TEXTS])
    ours = views.flatten(views.prepare(raw))
    theirs = TfidfVectorizer(sublinear_tf=True, use_idf=False, token_pattern=r"\w+")
    expected = theirs.fit_transform(TEXTS).toarray()
    columns = [tokenizer._number(word) % 4096 for word in theirs.get_feature_names_out()]
    assert len({*columns}) == len(columns)
    np.testing.assert_allclose(ours[:, columns].numpy(), expected, atol=1e-6)


def test_words_have_the_same_ids_everywhere() -> None:
    raw = Encoding(make_tokenizer("words"), 4).encode([("The cat.",)])
    assert raw.tolist() == Encoding(HashTokenizer(), 4).encode([("the CAT .",)]).tolist()
    assert raw[0, 3] == -1
    assert raw[0, :3].tolist() == [5353, 6322, 13311]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="hide is 2"):
        TextView(hide=2)
    for name in ("word", "words:x", "words:1", "hf"):
        with pytest.raises(InputError, match="tokenizer is"):
            make_tokenizer(name)
