"""How fast are texts tokenized, batched and encoded, against plain loops in PyTorch?

    python scripts/bench/wordnet_glosses.py glosses.csv
    python scripts/bench/text_batching.py --source glosses.csv --encoder hf/FOLDER \
        --out scripts/bench/results/text_batching.json

Features of `--texts` texts by a frozen encoder, and an epoch of training on them, each from the text on: with this
package (`eval_batch_size` 64, and `group_by_length` in training), with a plain loop whose batches hold texts of similar
length, padded to the longest, and with one that pads to `--max_length`. CPU seconds, the best of three; 1 is equal.

Target: at least 0.95 of the loop that pads by length, and at least twice the one that pads to the maximum.
Budget: 10 minutes of one core.
"""

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from provenance import publish
from torch import Tensor, nn

from sft_lightning import FineTuneClassifier, TextDataModule
from sft_lightning.networks.build import build_encoder
from sft_lightning.networks.encoder import Encoder
from sft_lightning.transfer.vectors import stack_vectors
from sft_lightning.utils.cpu import prepare_cpu

BATCH = 64
QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def measure(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a call, the best of three."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        function()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def make_batches(
    texts: list[str], tokenizer: Any, max_length: int, by_length: bool, seed: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield token ids, mask and positions."""
    tokenizer.enable_truncation(max_length)
    ids = [one.ids for one in tokenizer.encode_batch(texts)]
    order = list(range(len(ids)))
    rng = random.Random(seed)
    if seed is not None:
        rng.shuffle(order)
    if by_length:
        order.sort(key=lambda i: len(ids[i]))
    batches = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
    if seed is not None:
        rng.shuffle(batches)
    for batch in batches:
        width = max(len(ids[i]) for i in batch) if by_length else max_length
        padded = torch.zeros(2, len(batch), width, dtype=torch.int64)
        for row, i in enumerate(batch):
            padded[0, row, : len(ids[i])] = torch.tensor(ids[i])
            padded[1, row, : len(ids[i])] = 1
        yield padded[0], padded[1], torch.tensor(batch)


def average(net: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the tokens of each text."""
    tokens: Tensor = net(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).float()
    return (tokens * weights).sum(1) / weights.sum(1)


def main() -> None:
    """Compare on one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--texts", type=int, default=640)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    prepare_cpu()
    from tokenizers import Tokenizer

    with Path(args.source).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = random.Random(0).sample(rows, 2 * args.texts)
    texts = [row["text"] for row in rows[: args.texts]]
    names = sorted({row["label"] for row in rows})
    y = torch.tensor([names.index(row["label"]) for row in rows[: args.texts]])
    plain = Tokenizer.from_file(str(Path(args.encoder.removeprefix("hf/")) / "tokenizer.json"))
    plain.no_padding()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "texts.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "label", "split"])
            for i, row in enumerate(rows):
                out.writerow([row["text"], row["label"], "train" if i < args.texts else "test"])

        def open_data() -> TextDataModule:
            data = TextDataModule(
                str(table), tokenizer=args.encoder, max_length=args.max_length, val_size=0, batch_size=BATCH,
                group_by_length=BATCH, on_leak="drop",
            )  # fmt: skip
            data.setup("fit")
            return data

        encoder: Encoder = build_encoder(args.encoder, open_data().input_spec, "default")[0].eval()

        def encode_ours(data: TextDataModule) -> None:
            data.splits["labeled"].part.storage._tokens = None  # type: ignore[attr-defined] # which `setup` has made
            stack_vectors(data.batches_of("labeled", torch.device("cpu")), data, encoder)

        def encode_plain(by_length: bool) -> None:
            with torch.no_grad():
                for ids, mask, _ in make_batches(texts, plain, args.max_length, by_length, None):
                    average(encoder.net, ids, mask)

        def train_ours(data: TextDataModule) -> None:
            data.splits["labeled"].part.storage._tokens = None  # type: ignore[attr-defined]
            model = FineTuneClassifier(
                args.encoder, data.num_classes, data.input_spec, weights="default",
                optimizer=lambda p: torch.optim.AdamW(p, 1e-5),
            )  # fmt: skip
            Trainer(max_epochs=1, limit_val_batches=0, **QUIET).fit(model, data)

        def train_plain(by_length: bool) -> None:
            net: Any = build_encoder(args.encoder, open_data().input_spec, "default")[0].train()
            head = nn.Linear(net.num_features, len(names))
            optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], 1e-5)
            for ids, mask, at in make_batches(texts, plain, args.max_length, by_length, 0):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(average(net.net, ids, mask)), y[at]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        data = open_data()
        seconds = {
            "features": {
                "this package": measure(lambda: encode_ours(data)),
                "padded by length": measure(lambda: encode_plain(True)),
                "padded to the maximum": measure(lambda: encode_plain(False)),
            },
            "training": {
                "this package": measure(lambda: train_ours(open_data())),
                "padded by length": measure(lambda: train_plain(True)),
                "padded to the maximum": measure(lambda: train_plain(False)),
            },
        }
    ratios = {
        work: {name: round(by[name] / by["this package"], 2) for name in by if name != "this package"}
        for work, by in seconds.items()
    }
    rounded = {work: {name: round(value, 2) for name, value in by.items()} for work, by in seconds.items()}
    args.source, args.encoder = Path(args.source).name, Path(args.encoder).name
    publish(args, {"times_as_fast_as": ratios, "cpu_seconds": rounded})


if __name__ == "__main__":
    main()
