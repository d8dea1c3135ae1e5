"""The table of package descriptions: tags of facets are classes, and source packages are groups."""

import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
import debtags

LISTING = """Package: zoo-data
Source: zoo (1.2)
Description: Data of a game
Tag: game::strategy, role::app-data, role::program,
 use::gameplaying

Package: zoo
Description: Game
Tag: role::program

Package: zoo
Description: Newer game
Tag: role::rare

Package: ape
Description: Game

Package: bee
Description: Insect
Tag: use::viewing, role::TODO

Package: cow
Description: Cattle
Tag: role::rare
"""


def test_packages_become_rows() -> None:
    packages = [*debtags.read_packages(LISTING.splitlines())]
    assert [(one.name, one.source) for one in packages] == [
        ("zoo-data", "zoo"), ("zoo", "zoo"), ("ape", "ape"), ("bee", "bee"), ("cow", "cow"),
    ]  # fmt: skip
    assert packages[0].tags == ("game::strategy", "role::app-data", "role::program", "use::gameplaying")
    rows = debtags.make_rows(packages, ["role"], 1, 1.0)
    assert rows == [
        ("Game", "", "ape", "ape"),  # the first of equal texts
        ("Insect", "", "bee", "bee"),
        ("Cattle", "role::rare", "cow", "cow"),
        ("Data of a game", "role::app-data;role::program", "zoo", "zoo-data"),
    ]
    few = {row[3]: row[1] for row in debtags.make_rows(packages, ["role", "use"], 2, 1.0)}
    assert few == {"ape": "", "bee": ";", "cow": ";", "zoo-data": ";"}  # of rare tags alone
    assert debtags.make_rows(packages, ["role"], 1, 0.0) == []
