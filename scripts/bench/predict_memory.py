"""Measure the peak memory of `predict` for growing numbers of files, to check that it streams.

    python scripts/bench/predict_memory.py --out scripts/bench/results/predict_memory.json

It writes 1,000 images of the sample as PNG files, adds hard links until a folder has the requested number of files, and
lists them in a CSV. Each `predict` runs in a process of its own, after one that has fitted the calibration. The result
has the peak resident set of the process and of its largest worker (Linux only), in MiB, and the growth of the larger
of the two sources' peaks from the first to the last size, per million files.
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

from commands import fit
from PIL import Image
from provenance import publish

from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.sources import open_source

DISTINCT = 1000
# VmHWM rather than `ru_maxrss`, which a process inherits from the process that starts it.
PREDICT_SCRIPT = """
import json, re, resource, sys
from pathlib import Path
from sft_lightning.__main__ import main
code = main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"code": code, "main_mib": round(peak / 1024, 1), "worker_mib": round(worker / 1024, 1)}))
"""


def write_images(folder: Path) -> list[Path]:
    """Write images of the sample's test split as files and return their paths."""
    images = open_source("sample").load()["test"].storage
    assert isinstance(images, TensorStorage)
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(DISTINCT)]
    for path, image in zip(paths, images.data, strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    return paths


def link_images(paths: list[Path], folder: Path, count: int) -> Path:
    """Create a folder with `count` hard links to the given files and return it."""
    folder.mkdir()
    for i in range(count):
        os.link(paths[i % len(paths)], folder / f"image_{i:09}.png")
    return folder


def measure(run: Path, source: Path, workers: int) -> dict[str, Any]:
    """Run `predict` in a process of its own and return its memory, rows and seconds."""
    argv = ["predict", str(run), str(source), f"--data.init_args.num_workers={workers}"]
    start = time.perf_counter()
    command = [sys.executable, "-c", PREDICT_SCRIPT, *argv]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        result["rows"] = sum(1 for _ in csv.reader(file)) - 1
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    temporary = Path(tempfile.mkdtemp())
    os.chdir(temporary)
    argv = ["--trainer.max_epochs=1", f"--data.init_args.eval_batch_size={args.batch_size}"]
    run, _ = fit(["quickstart/fine_tune.yaml"], "bench", 0, *argv)
    paths = write_images(temporary / "originals")
    measure(run, paths[0].parent, args.workers)  # fits the calibration
    peaks: dict[str, dict[str, Any]] = {}
    for count in args.files:
        folder = link_images(paths, temporary / str(count), count)
        peaks[f"folder of {count:,}"] = measure(run, folder, args.workers)
        table = temporary / f"{count}.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["path"])
            rows.writerows([f"{count}/image_{i:09}.png"] for i in range(count))
        peaks[f"CSV of {count:,}"] = measure(run, table, args.workers)
        shutil.rmtree(folder)
    shutil.rmtree(temporary)
    first, last = (
        max(peaks[f"{kind} of {count:,}"]["main_mib"] for kind in ("folder", "CSV"))
        for count in (args.files[0], args.files[-1])
    )
    growth = round((last - first) / (args.files[-1] - args.files[0]) * 1e6, 1)
    publish(args, {"peaks": peaks, "mib_for_each_million_files": growth})


if __name__ == "__main__":
    main()
