import re

from sft_lightning.report.figures import draw_curves, draw_sorted_recall


def test_legends_name_the_stage_only_where_metrics_would_be_confused() -> None:
    curve = [(1, 0.5), (2, 0.4)]
    values = {"train/loss": curve, "val/loss": curve, "val/macro_f1": curve}
    drawn = draw_curves(values, [("loss", ["train/loss", "val/loss"]), ("validation", ["val/macro_f1"])])
    assert re.findall(r"</i>([^<]*)</span>", drawn) == ["training loss", "validation loss", "macro f1"]


def test_recall_is_drawn_from_the_lowest_class_to_the_highest() -> None:
    shuffled, ordered = (draw_sorted_recall(recall, 0.5, "Recall") for recall in ([0.9, 0.1, 0.4], [0.1, 0.4, 0.9]))
    assert shuffled == ordered != draw_sorted_recall([0.1, 0.4, 0.9], 0.6, "Recall")
    assert re.findall(r"</i>([^<]*)</span>", shuffled) == ["recall", "accuracy"]
