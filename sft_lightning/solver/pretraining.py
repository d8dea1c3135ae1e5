"""Self-supervised pre-training on the examples of a source, from scratch or from a start."""

import hashlib
from pathlib import Path

from sft_lightning.runs.checkpoints import find_newest_checkpoint
from sft_lightning.runs.paths import LOGS, list_versions
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.solver.recipes import fit, get_run
from sft_lightning.solver.space import Space
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.json_files import read_json_object

SMALL_BATCH, LARGE_BATCH = 256, 64  # for this network, and for one of a library


def count_batch(source: LabeledSource, is_large: bool) -> int:
    """Return the number of examples of a step, each of which gives two views.

    Args:
        source: Source of the examples.
        is_large: Whether the network is one of a library.
    """
    return min(LARGE_BATCH if is_large else SMALL_BATCH, max(2, source.pool_size))


def pretrain(source: LabeledSource, steps: int, name: str, marker: Path, start: Space | None = None) -> Path:
    """Train SimCLR (Chen et al. 2020) on the pool and the examples of the labels, without their labels.

    A run of an earlier call is returned where it has seen the same examples for as many steps, and goes on from its
    last checkpoint where it was stopped. Further labels of these examples change nothing.

    Args:
        source: Source as the network sees it.
        steps: Number of optimizer steps.
        name: Name of the run below `lightning_logs`.
        marker: File that remembers the run.
        start: Network to go on from; None for one from scratch.

    Returns:
        Folder of the run.
    """
    argv, digest, is_large = ((), "", False) if start is None else (start.argv, start.digest, start.is_large)
    key = hashlib.sha256(repr((source.content_key, argv, digest)).encode()).hexdigest()
    known = read_json_object(marker, "remove it") if marker.is_file() else {}
    if known.get("key") == key and known.get("run") and known.get("steps", 0) >= steps and Path(known["run"]).is_dir():
        return Path(known["run"])
    runs = [str(path) for path in list_versions(Path(LOGS) / name)]
    earlier, stopped = known.get("earlier"), list[str]()
    if known.get("key") == key and known.get("steps") == steps and isinstance(earlier, list):
        stopped = [run for run in runs if run not in earlier and find_newest_checkpoint(Path(run))][-1:]
        runs = earlier
    write_json(marker, {"key": key, "steps": steps, "earlier": runs})  # so that a run that is killed is known as this
    options = [*source.data_argv(None), "--model=SelfSupervisedModule", "--model.objective=SimCLR"]
    options += ["--model.objective.hidden=512", "--model.objective.projection=128"]
    options += argv or [f"--model.backbone={source.modality.solve.pretrained}"]
    options += ["--model.optimizer=torch.optim.AdamW", f"--model.optimizer.lr={0.0003 if argv else 0.002}"]
    options += ["--model.lr_scheduler=WarmupCosine", f"--model.lr_scheduler.warmup_steps={min(50, steps // 4)}"]
    options += [f"--data.batch_size={count_batch(source, is_large)}", f"--data.steps_per_epoch={steps}"]
    options += ["--trainer.max_epochs=1", *source.modality.solve.pretrain_view]
    options += [f"--ckpt_path={run}" for run in stopped]
    run = get_run(fit(options, name))
    write_json(marker, {"key": key, "steps": steps, "run": str(run)})
    return run
