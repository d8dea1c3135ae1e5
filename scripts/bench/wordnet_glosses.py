"""Write the glosses of WordNet's nouns as a table of texts with their lexicographer's class.

    apt-get install wordnet-base
    python scripts/bench/wordnet_glosses.py glosses.csv

One text for each synset of the twelve largest classes, without the usage examples that follow a gloss. The first of
equal texts is kept.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

NOUNS = Path("/usr/share/wordnet/data.noun")
CLASSES = (  # noqa: SIM905
    "Tops act animal artifact attribute body cognition communication event feeling food group location motive object "
    "person phenomenon plant possession process quantity relation shape state substance time"
).split()  # numbers 3 to 28 of lexicographer files, see lexnames(5WN)


def read_glosses() -> dict[str, str]:
    """Return the class of each gloss."""
    texts: dict[str, str] = {}
    for line in NOUNS.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the license
            continue
        head, _, gloss = line.partition(" | ")
        text = gloss.partition('; "')[0].strip()
        texts.setdefault(text, CLASSES[int(head.split()[1]) - 3])
    return texts


def main() -> None:
    """Write the table that the first argument names."""
    texts = read_glosses()
    largest = [name for name, _ in Counter(texts.values()).most_common(12)]
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows((text, label) for text, label in texts.items() if label in largest and text)


if __name__ == "__main__":
    main()
