"""How good is AutoGluon's one call on the sources of `solve_sources.py`, with the same labels and the same weights?

    python3.11 -m venv other && other/bin/pip install autogluon.multimodal
    python scripts/bench/autogluon_sources.py --python other/bin/python --sources FOLDER ... --weights FILE \
        --minutes 10 --out scripts/bench/results/autogluon_sources.json

AutoGluon learns from the labeled images alone, and chooses its own split, steps and stopping. It fetches its networks
from a hub; here it finds the file of weights of `efficientnet_lite0.py` in a cache made for it. The held-out images are
those of `solve_sources.py`.
"""

import argparse
import csv
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from folder_recipes import divide
from provenance import publish
from safetensors.torch import save_file
from solve_sources import write_table

from sft_lightning.networks.weights import read_weights

REPOSITORY = "models--timm--tf_efficientnet_lite0.in1k"


def write_cache(weights: Path, folder: Path) -> None:
    """Write the weights where the hub's library would have put them.

    Args:
        weights: File of `efficientnet_lite0.py`.
        folder: Folder of the hub's cache.
    """
    snapshot = folder / "hub" / REPOSITORY / "snapshots" / "0" / "model.safetensors"
    snapshot.parent.mkdir(parents=True)
    (folder / "hub" / REPOSITORY / "refs").mkdir()
    (folder / "hub" / REPOSITORY / "refs" / "main").write_text("0")
    tensors = {
        name.replace("head.", "classifier.") if name.startswith("head.") else name.removeprefix("net."): tensor
        for name, tensor in read_weights(weights)[0].items()
    }
    save_file(tensors, snapshot)


def run_source(source: Path, python: Path, minutes: float, labels_per_class: int, cache: Path) -> dict[str, object]:
    """Train on the labels of a source, and return the accuracy on its held-out images.

    Args:
        source: Folder of class folders.
        python: Python of the environment with AutoGluon.
        minutes: Time for training.
        labels_per_class: Number of labels of each class.
        cache: Folder of the hub's cache.
    """
    links = Path(source.name)
    sizes = divide(source, links, 20, 1000)
    with write_table(links, labels_per_class).open(newline="") as file:
        labeled = [(str((links / row["path"]).resolve()), row["label"]) for row in csv.DictReader(file) if row["label"]]
    test = [(str(path.resolve()), path.parent.name) for path in (links / "test").rglob("*") if path.is_symlink()]
    for name, rows in (("train", labeled), ("test", test)):
        with Path(f"{source.name}_{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image", "label"), *rows])
    worker = [str(python), str(Path(__file__).with_name("autogluon_worker.py"))]
    tables = [f"{source.name}_train.csv", f"{source.name}_test.csv"]
    offline = {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [*worker, *tables, str(minutes), f"{source.name}_predictor"],
        env={**os.environ, **offline}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    correct = torch.tensor([a == b for a, (_, b) in zip(answer["predicted"], test, strict=True)])
    return {
        "classes": len(sizes),
        "held_out": len(test),
        "accuracy": round(float(correct.double().mean()), 4),
        "seconds": answer["seconds"],
        "autogluon": answer["version"],
    }


def main() -> None:
    """Run all sources, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of the environment with AutoGluon")
    parser.add_argument("--sources", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--labels_per_class", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out, weights, python = args.out and args.out.resolve(), args.weights.resolve(), args.python.absolute()
    sources = [source.resolve() for source in args.sources]
    os.chdir(tempfile.mkdtemp())
    cache = Path("cache").resolve()
    write_cache(weights, cache)
    results = {}
    for source in sources:
        results[source.name] = run_source(source, python, args.minutes, args.labels_per_class, cache)
        print(json.dumps(results[source.name]), flush=True)
    args.sources, args.weights, args.python = [source.name for source in sources], weights.name, "PYTHON"
    publish(args, {"results": results})


if __name__ == "__main__":
    main()
