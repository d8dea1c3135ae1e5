"""One process and two (gloo, DDP) on this machine: images a second of the framework and of a plain loop, in turn.

    python scripts/bench/processes.py --out scripts/bench/results/processes.json

The framework trains `configs/quickstart/fine_tune.yaml` (the MLP, `batch_size` 64 in each process) as `growth.py` does,
through the command line. The plain loop has the same network, fused Adam and random images in memory, and with two
processes torch's DDP; as there, each process has its share of the cores, and the first steps do not count. Each
measurement is in processes of its own. `share` is, round by round, the framework's speed over that of the plain loop.
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

from growth import BATCH, HERE, ROOT, SIDE, SKIPPED, fit, idx

IMAGES = 10_000


def plain(rank: int, ranks: int, steps: int, file: str) -> None:
    """One process of the plain loop; the first prints images a second of all.

    Args:
        rank: Of this process.
        ranks: How many.
        steps: All, the first `SKIPPED` not counted.
        file: Where they meet.
    """
    import torch
    from torch import distributed, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    from sft_lightning.networks.vision.backbones import build_backbone

    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    torch.manual_seed(0)
    body, _ = build_backbone("mlp", (1, SIDE, SIDE))
    network: nn.Module = nn.Sequential(*body.net.children(), nn.Linear(body.num_features, 10))
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
        mine = order[step % (IMAGES // BATCH) * BATCH :][:BATCH]
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x[mine].float().div_(255)), y[mine])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if rank == 0:
        print(json.dumps(round((steps - SKIPPED) * BATCH * ranks / (time.perf_counter() - start))))


def alone(ranks: int, steps: int) -> float:
    """The plain loop in processes of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE.with_name("processes.py")), "--only"]
        given = [[str(rank), str(ranks), str(steps), f"{folder}/meeting"] for rank in range(ranks)]
        started = [
            subprocess.Popen([*command, *words], env=environment, stdout=subprocess.PIPE, text=True) for words in given
        ]
        told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("the plain loop failed, see above")
    return float(told[0])


def main() -> None:
    """Measures and prints JSON."""
    if sys.argv[1:2] == ["--only"]:
        plain(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
        return
    from about import publish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help=f"of a training, the first {SKIPPED} untimed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rounds < 1 or args.steps <= SKIPPED:
        parser.error(f"give at least 1 round and more than {SKIPPED} steps")
    args.out = None if args.out is None else args.out.resolve()
    found: dict[str, dict[str, list[float]]] = {kind: {"1": [], "2": []} for kind in ("framework", "plain")}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        source = idx(Path(folder), IMAGES)
        for _ in range(args.rounds):
            for ranks in (1, 2):
                found["plain"][str(ranks)].append(alone(ranks, args.steps))
                found["framework"][str(ranks)].append(fit(source, args.steps, ranks)["images_per_second"])
        os.chdir(ROOT)
    share: dict[str, Any] = {
        ranks: [round(a / b, 3) for a, b in zip(own, found["plain"][ranks], strict=True)]
        for ranks, own in found["framework"].items()
    }
    publish(args, {"images_per_second": found, "share": share})


if __name__ == "__main__":
    main()
