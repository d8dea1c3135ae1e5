"""Write the page, the figure and the sentences of a study again from its stored result, without training.

    python scripts/bench/plot_study.py --plot docs/images/fashion_mnist_study.png

Reads a `summary.json` of a study, such as `scripts/bench/results/fashion_mnist_study.json`, and prints what
`sft-lightning study` prints. The accuracies, their date and their machine stay as they were measured; sentences, names
and figure are those of the present code.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from sft_lightning.study.study import COLUMNS, write_results
from sft_lightning.utils.atomic import write_json

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("date", "version", "machine", "commit")


def rewrite_study(result: Path, folder: Path) -> str:
    """Write `report.html`, `label_efficiency.png`, `results.csv` and `summary.json` of a stored result.

    Args:
        result: Stored `summary.json`.
        folder: Folder to write to; its name becomes the title of the page.

    Returns:
        Verdict and table as text.
    """
    stored = json.loads(result.read_text(encoding="utf-8"))
    rows = [{**dict.fromkeys([*COLUMNS, "test_set"], ""), **row} for row in stored["rows"]]
    text = write_results(folder, rows, stored["baseline"], stored["judge"])
    written = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    measured = {name: stored[name] for name in MEASURED if name in stored}
    write_json(folder / "summary.json", {**written, **measured, "rows": stored["rows"]})
    return text


def main() -> None:
    """Write the files of the study, and print its verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = ROOT / "scripts" / "bench" / "results"
    parser.add_argument("--result", type=Path, default=results / "fashion_mnist_study.json", help="stored summary.json")
    parser.add_argument("--plot", type=Path, help="where to copy the figure")
    parser.add_argument("--page", type=Path, help="where to copy the page")
    parser.add_argument("--update", action="store_true", help="replace the sentences of the stored result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / arguments.result.stem.removesuffix("_study")
        print(rewrite_study(arguments.result, folder))
        copies = {"label_efficiency.png": arguments.plot, "report.html": arguments.page}
        copies["summary.json"] = arguments.result if arguments.update else None
        for name, target in copies.items():
            if target is not None:
                shutil.copyfile(folder / name, target)


if __name__ == "__main__":
    main()
