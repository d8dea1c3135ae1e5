"""How much faster is a pass over recordings from the decoded cache than one that decodes them anew?

    apt-get install klettres-data
    python scripts/bench/audio_cache.py --source /usr/share/klettres --out scripts/bench/results/audio_cache.json

The recordings are compressed (OGG), and listed in a table as by `audio_starts.py`. A pass reads one window of each, as
evaluation does, in batches of 32 in this process: decoded and resampled anew, and from the cache, which an earlier pass
has written. Each is timed three times, alternately, after one pass that counts for neither; the median counts.

Aim, stated before the first run: the cache is at least 5 times as fast.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from audio_starts import write_table
from provenance import publish

from sft_lightning import AudioDataModule


def read_all(data: AudioDataModule) -> tuple[float, int]:
    """Return the CPU seconds of a pass over the labeled recordings, and their number."""
    begin, count = time.process_time(), 0
    for batch in data.batches_of("labeled", torch.device("cpu")):
        count += len(batch.y)
    return time.process_time() - begin, count


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--sample_rate", type=int, default=16_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"sample_rate": args.sample_rate, "seconds": 1.0, "eval_windows": 1, "eval_batch_size": 32}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        both, table = {}, Path(folder, "recordings.csv")
        write_table(args.source.resolve(), table)
        for name, cache in (("decoded anew", None), ("from the cache", f"{folder}/cache")):
            data = AudioDataModule(
                str(table), root=str(args.source.resolve()), val_size=0, test_size=0, num_workers=0, cache=cache,
                on_bad_recording="skip", **settings,
            )  # fmt: skip
            data.setup("fit")
            both[name] = data
            _, count = read_all(data)
        for _ in range(args.passes):
            for name, data in both.items():
                seconds.setdefault(name, []).append(round(read_all(data)[0], 3))
    args.source = args.source.name
    anew, cached = (statistics.median(values) for values in seconds.values())
    publish(args, {"recordings": count, "cpu_seconds": seconds, "ratio": round(anew / cached, 1)})


if __name__ == "__main__":
    main()
