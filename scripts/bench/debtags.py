"""Write the descriptions of Debian's packages as a table of texts with the tags that people gave them (debtags).

    apt-get update
    python scripts/bench/debtags.py debtags.csv
    sft-lightning fit --config configs/multi_label/class_aware.yaml --data.init_args.source debtags.csv

One text for each package of the archives that apt knows: its short description. Its classes are its tags of some
facets, such as `role::program`; tags of few packages are left out. Packages without a tag of these facets are
unlabeled. The group of a text is its source package, whose binary packages describe one program. The first of equal
texts is kept.

An archive changes: the SHA-256 of the table is printed, and `--sha256` refuses another one.
"""

import argparse
import csv
import hashlib
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SEPARATOR = ";"
FACETS = ("role", "interface", "implemented-in", "works-with")
_FIELD = re.compile(r"([A-Za-z0-9-]+):[ \t]*(.*)")


class Package(NamedTuple):
    """Package of an archive.

    Attributes:
        name: Name of the package.
        source: Name of its source package.
        text: Short description.
        tags: Tags, such as `role::program`.
    """

    name: str
    source: str
    text: str
    tags: tuple[str, ...]


def read_packages(lines: Iterable[str]) -> Iterator[Package]:
    """Read the output of `apt-cache dumpavail`, the first of each name.

    Args:
        lines: Lines of the output; an empty line ends a package.
    """
    fields: dict[str, str] = {}
    names: set[str] = set()
    last = ""
    for line in [*lines, "\n"]:
        found = _FIELD.match(line)
        if found is not None:
            last, fields[last] = found[1], found[2].strip()
        elif line.strip() and last:  # a field goes on
            fields[last] += f" {line.strip()}"
        elif fields:
            name = fields.get("Package", "")
            tags = tuple(tag.strip() for tag in fields.get("Tag", "").split(",") if tag.strip())
            source = fields.get("Source", name).partition(" ")[0]
            if name and name not in names:
                names.add(name)
                yield Package(name, source, fields.get("Description", ""), tags)
            fields, last = {}, ""


def make_rows(packages: Iterable[Package], facets: Iterable[str], fewest: int, share: float) -> list[tuple[str, ...]]:
    """Return the rows `text`, `label`, `group` and `id`, in the order of the packages' names.

    Args:
        packages: Packages.
        facets: Facets whose tags are classes.
        fewest: Smallest number of packages of a class.
        share: Share of the source packages to take, chosen by a hash of their names.
    """
    begins = tuple(f"{facet}::" for facet in facets)
    texts: dict[str, Package] = {}
    for one in sorted(packages):
        drawn = int.from_bytes(hashlib.sha256(one.source.encode()).digest()[:8], "big") / 2**64
        if one.text and drawn < share:
            texts.setdefault(one.text, one)
    own = {
        text: [tag for tag in one.tags if tag.startswith(begins) and "TODO" not in tag] for text, one in texts.items()
    }
    counts = Counter(tag for tags in own.values() for tag in tags)
    rows: list[tuple[str, ...]] = []
    for text, one in texts.items():
        kept = sorted({tag for tag in own[text] if counts[tag] >= fewest})
        label = (SEPARATOR.join(kept) or SEPARATOR) if own[text] else ""
        rows.append((text, label, one.source, one.name))
    return rows


def main() -> None:
    """Write the table that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="path of the table")
    parser.add_argument("--facets", nargs="+", default=["role"], help=f"facets, such as {', '.join(FACETS)}")
    parser.add_argument("--fewest", type=int, default=100, help="smallest number of packages of a class")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the source packages, by a hash of their names"
    )
    parser.add_argument("--sha256", help="checksum that the table must have")
    asked = parser.parse_args()
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    rows = make_rows(read_packages(listed.splitlines()), asked.facets, asked.fewest, asked.share)
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("text", "label", "group", "id"), *rows])
    content = table.getvalue().encode()
    digest = hashlib.sha256(content).hexdigest()
    if asked.sha256 is not None and digest != asked.sha256:
        sys.exit(f"the table has the SHA-256 {digest}, not {asked.sha256}: the archives of apt are others")
    asked.out.write_bytes(content)
    labeled = [row[1] for row in rows if row[1]]
    counts = Counter(tag for label in labeled for tag in label.split(SEPARATOR) if tag)
    sizes = sum(counts.values()) / max(1, len(labeled))
    print(f"{asked.out}: {len(rows):,} texts, {len(labeled):,} with labels, {sizes:.2f} classes each, SHA-256 {digest}")
    for tag, count in counts.most_common():
        print(f"  {count:6,} {tag}")


if __name__ == "__main__":
    main()
