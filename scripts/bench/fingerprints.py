"""Train each shipped config for some steps and print digests of its weights and losses, to compare two checkouts.

    scripts/bench/fingerprints.py --checkout . > after.json
    scripts/bench/fingerprints.py --checkout ../before > before.json

Two versions that compute the same, bit for bit, print the same digests on one machine.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sft_lightning.networks.weights import read_weights

STEPS = 50


def list_configs(checkout: Path) -> dict[str, list[Path]]:
    """Return the shipped configs that train on the sample, by name: each a list of files that are merged in order."""
    folder = checkout / "configs"
    shared = folder / "semi_supervised" / "shared.yaml"
    configs = {f"quickstart/{path.stem}": [path] for path in sorted((folder / "quickstart").glob("*.yaml"))}
    for path in sorted(shared.parent.glob("*.yaml")):
        if path != shared:
            configs[f"semi_supervised/{path.stem}"] = [shared, path]
    return configs


def fingerprint(checkout: Path, configs: list[Path], run: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights after `STEPS` steps and of the logged losses."""
    argv = [word for config in configs for word in ("--config", str(config.resolve()))]
    argv += ["--run_name=run", f"--data.init_args.steps_per_epoch={STEPS}", "--trainer.max_epochs=1"]
    argv += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=10"]
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sft_lightning", "fit", *argv]
    subprocess.run(command, cwd=run, env=env, check=True, capture_output=True)
    (version,) = (run / "lightning_logs" / "run").iterdir()
    state, _ = read_weights(version / "checkpoints" / "last.ckpt")
    weights = hashlib.sha256()
    for name in sorted(state):
        weights.update(name.encode() + state[name].numpy().tobytes())
    # The log also has times, which differ between runs.
    rows = [row for row in (version / "metrics.csv").read_text().splitlines() if ",train/" in row and "loss" in row]
    return {"weights": weights.hexdigest(), "losses": hashlib.sha256("\n".join(rows).encode()).hexdigest()}


def main() -> None:
    """Train the configs and print their digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path())
    parser.add_argument("--only", default="", help="part of the names of configs")
    args = parser.parse_args()
    digests = {}
    for name, configs in list_configs(args.checkout).items():
        if args.only in name:
            with tempfile.TemporaryDirectory() as folder:
                digests[name] = fingerprint(args.checkout, configs, Path(folder))
    print(json.dumps({"steps": STEPS, "torch": torch.__version__, "configs": digests}, indent=1))


if __name__ == "__main__":
    main()
