"""Peak memory of `predict` by number of files: does it stream?

    python scripts/bench/predict_memory.py --out scripts/bench/results/predict_memory.json

1,000 images of the sample are written as PNG, and linked (hard links) until one folder has as many files as asked
for, and listed in a CSV. Each `predict` is a process of its own, after one that has found out the calibration; told are
its peak resident set and that of its largest worker (Linux only), in MiB. Growth is that of the larger source's
peak from the first to the last size, for each million files.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from about import publish
from commands import fit
from PIL import Image

from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.sources import open_source

DISTINCT = 1000
# Not `ru_maxrss` of the process itself: it begins with that of the process that has started it.
ONE = """
import json, re, resource, sys
from pathlib import Path
from sft_lightning.__main__ import main
code = main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"code": code, "main_mib": round(peak / 1024, 1), "worker_mib": round(worker / 1024, 1)}))
"""


def originals(folder: Path) -> list[Path]:
    """Images of the sample's test part as files."""
    images = open_source("sample").load()["test"].images
    assert isinstance(images, TensorStorage)
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(DISTINCT)]
    for path, image in zip(paths, images.data, strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    return paths


def linked(paths: list[Path], folder: Path, count: int) -> Path:
    """A folder with so many files."""
    folder.mkdir()
    for i in range(count):
        os.link(paths[i % len(paths)], folder / f"picture_{i:09}.png")
    return folder


def measure(run: Path, source: Path, workers: int) -> dict[str, Any]:
    """One `predict` in a process of its own."""
    words = ["predict", str(run), str(source), f"--data.init_args.num_workers={workers}"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", ONE, *words], capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        told["rows"] = sum(1 for _ in csv.reader(file)) - 1
    return {**told, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    place = Path(tempfile.mkdtemp())
    os.chdir(place)
    small = ["--trainer.max_epochs=1", f"--data.init_args.eval_batch_size={args.batch_size}"]
    run, _ = fit(["quickstart/fine_tune.yaml"], "bench", 0, *small)
    paths = originals(place / "originals")
    measure(run, paths[0].parent, args.workers)  # finds out the calibration
    found: dict[str, dict[str, Any]] = {}
    for count in args.files:
        folder = linked(paths, place / str(count), count)
        found[f"folder of {count:,}"] = measure(run, folder, args.workers)
        table = place / f"{count}.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["path"])
            rows.writerows([f"{count}/picture_{i:09}.png"] for i in range(count))
        found[f"CSV of {count:,}"] = measure(run, table, args.workers)
        shutil.rmtree(folder)
    shutil.rmtree(place)
    first, last = (
        max(found[f"{kind} of {count:,}"]["main_mib"] for kind in ("folder", "CSV"))
        for count in (args.files[0], args.files[-1])
    )
    growth = round((last - first) / (args.files[-1] - args.files[0]) * 1e6, 1)
    publish(args, {"peaks": found, "mib_for_each_million_files": growth})


if __name__ == "__main__":
    main()
