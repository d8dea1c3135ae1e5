"""Compare the framework with a plain loop on one process and on two (gloo, DDP) of this machine.

    python scripts/bench/processes.py --out scripts/bench/results/processes.json

The framework trains `configs/quickstart/fine_tune.yaml` (the MLP, `batch_size` 64 per process) as `growth.py` does,
through the command line. The plain loop has the same network, fused Adam and random images in memory, and uses torch's
DDP with two processes. Each process gets its share of the cores, and the first steps are not counted. Each measurement
runs in processes of its own, in turn. `share` is the framework's speed divided by that of the plain loop, per round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from growth import BATCH, HERE, ROOT, SIDE, SKIPPED, measure_training, package_environment, write_mnist

IMAGES = 10_000


def run_plain_loop(rank: int, ranks: int, steps: int, file: str) -> None:
    """Run one process of the plain loop; rank 0 prints the images per second of all processes.

    Args:
        rank: Rank of this process.
        ranks: Number of processes.
        steps: Number of steps, of which the first `SKIPPED` are not counted.
        file: Path of the file through which the processes find each other.
    """
    import torch
    from torch import distributed, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from sft_lightning.networks.vision.backbones import build_backbone

    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    torch.manual_seed(0)
    backbone, _ = build_backbone("mlp", (1, SIDE, SIDE))
    network: nn.Module = nn.Sequential(*backbone.net.children(), nn.Linear(backbone.num_features, 10))
    if ranks > 1:
        distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=ranks)
        network = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    x = torch.randint(0, 256, (IMAGES, 1, SIDE, SIDE), dtype=torch.uint8)
    y = torch.randint(0, 10, (IMAGES,))
    start = 0.0
    for step in range(steps):
        if step == SKIPPED:
            start = time.perf_counter()
        if step % (IMAGES // BATCH) == 0:
            order = torch.randperm(IMAGES)
        indices = order[step % (IMAGES // BATCH) * BATCH :][:BATCH]
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x[indices].float().div_(255)), y[indices])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if rank == 0:
        print(json.dumps(round((steps - SKIPPED) * BATCH * ranks / (time.perf_counter() - start))))


def measure_plain_loop(ranks: int, steps: int) -> float:
    """Run the plain loop in processes of its own and return its images per second."""
    environment = package_environment()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE.with_name("processes.py")), "--only"]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(ranks), str(steps), f"{folder}/rendezvous"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("the plain loop failed, see above")
    return float(outputs[0])


def main() -> None:
    """Measure and print JSON."""
    if sys.argv[1:2] == ["--only"]:
        run_plain_loop(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
        return
    from provenance import publish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help=f"steps per training, the first {SKIPPED} untimed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rounds < 1 or args.steps <= SKIPPED:
        parser.error(f"give at least 1 round and more than {SKIPPED} steps")
    args.out = None if args.out is None else args.out.resolve()
    speeds: dict[str, dict[str, list[float]]] = {kind: {"1": [], "2": []} for kind in ("framework", "plain")}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        source = write_mnist(Path(folder), IMAGES)
        for _ in range(args.rounds):
            for ranks in (1, 2):
                speeds["plain"][str(ranks)].append(measure_plain_loop(ranks, args.steps))
                result = measure_training(source, args.steps, ranks)
                speeds["framework"][str(ranks)].append(result["images_per_second"])
        os.chdir(ROOT)
    share: dict[str, Any] = {
        ranks: [round(a / b, 3) for a, b in zip(ours, speeds["plain"][ranks], strict=True)]
        for ranks, ours in speeds["framework"].items()
    }
    publish(args, {"images_per_second": speeds, "share": share})


if __name__ == "__main__":
    main()
