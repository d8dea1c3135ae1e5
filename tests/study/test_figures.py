from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from PIL import Image

from sft_lightning.study.figures import save_label_efficiency
from sft_lightning.study.statistics import confidence_interval

BASE = {10: [0.50, 0.52, 0.51], 100: [0.70, 0.71, 0.73]}
OURS = {10: [0.60, 0.62, 0.61], 100: [0.60, 0.61, 0.63]}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the figures that were saved."""
    figures: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def kept(self: Any, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", kept)
    return figures


def test_each_method_has_a_line_with_intervals(tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "new" / "figure.png"
    save_label_efficiency(path, {"labels_only": BASE, "ours": OURS}, "labels_only")
    assert Image.open(path).format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["10", "100"]
    assert axes.get_title(loc="left") == "Mean and 95% interval over 3 seeds"
    for bars, of in zip(axes.containers, (BASE, OURS), strict=True):
        line, _, (sticks,) = bars.lines
        assert line.get_ydata() == pytest.approx([sum(of[budget]) / 3 for budget in (10, 100)])
        assert line.get_xdata() == pytest.approx([10, 100], rel=0.15)
        for stick, budget in zip(sticks.get_segments(), (10, 100), strict=True):
            assert stick[:, 1] == pytest.approx(confidence_interval(of[budget])[1:])
    base, ours = (bars.lines[0] for bars in axes.containers)
    assert base.get_xdata()[0] != ours.get_xdata()[0]
    assert (base.get_color(), base.get_linestyle(), ours.get_linestyle()) == ("#666666", "--", "-")
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["labels_only", "ours"]  # as the lines end


def test_the_legend_has_the_order_in_which_lines_end(tmp_path: Path, drawn: list[Any]) -> None:
    save_label_efficiency(tmp_path / "f.png", {"labels_only": OURS, "ours": BASE, "short": {10: [0.9]}}, "labels_only")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["short", "ours", "labels_only"]
    assert drawn[0].axes[0].get_title(loc="left") == "Mean and 95% interval over 1 to 3 seeds"


@pytest.mark.parametrize(("seeds", "title"), [(1, "Mean over 1 seed; an"), (2, "Mean over 2 seeds; an")])
def test_one_budget_with_too_few_seeds_has_no_intervals(
    tmp_path: Path, drawn: list[Any], seeds: int, title: str
) -> None:
    results = {name: {100: [0.7, 0.8][:seeds]} for name in ("labels_only", "ours", "theirs")}
    save_label_efficiency(tmp_path / "f.png", results, "labels_only")
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left").startswith(title)
    low, high = axes.get_xlim()
    positions = [bars.lines[0].get_xdata()[0] for bars in axes.containers]
    assert low < positions[0] < positions[1] < positions[2] < high
    assert positions[1] == pytest.approx(100)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100"]


def test_wide_intervals_stay_in_the_range_of_accuracies(tmp_path: Path, drawn: list[Any]) -> None:
    save_label_efficiency(tmp_path / "f.png", {"labels_only": {100: [0.1, 0.5, 0.99]}}, "labels_only")
    assert drawn[0].axes[0].get_ylim() == (-0.02, 1.02)


def test_each_of_many_methods_has_its_own_style(tmp_path: Path, drawn: list[Any]) -> None:
    save_label_efficiency(tmp_path / "f.png", {f"m{k}": BASE for k in range(13)}, "m0")
    lines = [bars.lines[0] for bars in drawn[0].axes[0].containers]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 13
