"""PatchCore, PaDiM, coreset, threshold and metrics, each against a plain implementation."""

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from sft_lightning.anomaly import AnomalyMethod, PaDiM, PatchCore, metrics as metrics_module
from sft_lightning.anomaly.base import MapBatch
from sft_lightning.anomaly.coreset import choose_coreset
from sft_lightning.anomaly.maps import smooth_map
from sft_lightning.anomaly.metrics import AnomalyMetrics
from sft_lightning.anomaly.threshold import AlarmThreshold
from sft_lightning.data.source import Examples
from sft_lightning.data.splits import Split
from sft_lightning.data.storage import TensorStorage
from sft_lightning.paradigms.anomaly import AnomalyDetector
from sft_lightning.utils.errors import InputError
from tests.conftest import ROOT


def draw_maps(count: int, seed: int = 0) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 6, 8, 8, generator=made), torch.randn(count, 10, 4, 4, generator=made)]


def batches(maps: list[Tensor], size: int = 3) -> Iterator[MapBatch]:
    for rows in torch.arange(len(maps[0])).split(size):
        yield MapBatch(rows, [m[rows] for m in maps])


def describe(maps: list[Tensor]) -> Tensor:
    """Patches of each example, (N, 64, 16), by loops."""
    made = []
    for m in maps:
        padded = F.pad(m, (1, 1, 1, 1))
        mean = sum(padded[:, :, i : i + m.shape[2], j : j + m.shape[3]] for i in range(3) for j in range(3)) / 9
        made.append(F.interpolate(mean, (8, 8), mode="bilinear", align_corners=False))  # type: ignore[arg-type]
    return torch.cat(made, 1).permute(0, 2, 3, 1).reshape(len(maps[0]), 64, 16)


def test_patchcore_equals_a_plain_implementation() -> None:
    normal, new = draw_maps(7), draw_maps(5, 1)
    method = PatchCore(coreset=0.25, neighbors=5)
    kept = method.fit(batches(normal), 7, 3)
    assert kept == "keeps 112 of 448 patches with 16 features each, 0.0 MB"
    candidates = describe(normal).flatten(0, 1)
    assert torch.cdist(method.bank.double(), candidates.double()).min(1).values.max() < 1e-5
    scores = method.score(new, (32, 32))
    for i, patches in enumerate(describe(new).double()):
        bank = method.bank.double()
        distances = torch.cdist(patches, bank)
        nearest, which = distances.min(1)
        p = int(nearest.argmax())
        center = bank[which[p]]
        around = (bank - center).norm(dim=1).argsort()[:5]
        weight = 1 - torch.exp(nearest[p]) / torch.exp((bank[around] - patches[p]).norm(dim=1)).sum()
        assert scores.example[i].item() == pytest.approx(float(nearest[p] * weight), rel=1e-4)
        expected = F.interpolate(nearest.view(1, 1, 8, 8), (32, 32), mode="bilinear", align_corners=False)[0, 0]
        smooth = ndimage.gaussian_filter(expected.numpy(), 4, mode="mirror", truncate=3)
        assert scores.map[i].numpy() == pytest.approx(smooth, rel=1e-4)
    plain = PatchCore(coreset=0.25, neighbors=1)
    plain.bank = method.bank
    assert (plain.score(new, (32, 32)).example >= scores.example).all()


def test_candidates_are_bounded_and_do_not_depend_on_batches() -> None:
    maps = draw_maps(9)
    first, second = PatchCore(coreset=0.5, max_candidates=90), PatchCore(coreset=0.5, max_candidates=90)
    assert first.fit(batches(maps, 4), 9, 0).startswith("keeps 45 of 90 patches")
    second.fit(batches(maps, 2), 9, 0)
    torch.testing.assert_close(first.bank, second.bank)
    small = PatchCore(coreset=1.0, max_bank=7)
    small.fit(batches(maps), 9, 0)
    assert len(small.bank) == 7


def test_a_coreset_is_the_greedy_one_and_covers() -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = choose_coreset(x, 12, 5).tolist()
    expected = [chosen[0]]
    while len(expected) < 12:
        distance = torch.cdist(x, x[expected]).min(1).values
        expected.append(int(distance.argmax()))
    assert chosen == expected
    copies = torch.cat([x[:3]] * 4)
    assert len(choose_coreset(copies, 10, 0)) == 3
    wide = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    wide[150:] += 20  # a group apart is never left out
    assert any(i >= 150 for i in choose_coreset(wide, 3, 0).tolist())


def test_padim_equals_a_plain_implementation() -> None:
    normal, new = draw_maps(40), draw_maps(5, 1)
    method = PaDiM(dimensions=5, epsilon=0.02)
    kept = method.fit(batches(normal), 40, 0)
    assert kept.startswith("keeps a Gaussian of 5 of 16 features at each of 64 places")
    small = [F.interpolate(m, (8, 8), mode="bilinear", align_corners=False) for m in (*normal, *new)]
    joined = torch.cat(small[:2], 1), torch.cat(small[2:], 1)
    x, y = (m[:, method.chosen].flatten(2).double().numpy() for m in joined)
    scores = method.score(new, (32, 32))
    distances = np.empty((5, 64))
    for p in range(64):
        inverse = np.linalg.inv(np.cov(x[:, :, p].T) + 0.02 * np.eye(5))
        centered = y[:, :, p] - x[:, :, p].mean(0)
        distances[:, p] = np.sqrt(np.einsum("ni,ij,nj->n", centered, inverse, centered))
    expected = smooth_map(torch.from_numpy(distances).view(5, 8, 8), (32, 32), 4.0)
    torch.testing.assert_close(scores.map.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.example, scores.map.flatten(1).max(1).values)


def test_what_takes_too_much_memory_is_refused() -> None:
    maps = [torch.zeros(2, 800, 40, 40)]
    with pytest.raises(InputError, match=r"covariance of 800 x 800 numbers for each of 1,600 places, which takes 8 GB"):
        PaDiM(dimensions=900).fit(batches(maps), 2, 0)
    with pytest.raises(InputError, match=r"2,000,000 patches with 800 features each take 6 GB: lower max_candidates"):
        PatchCore(max_candidates=2_000_000).fit(batches(maps), 2000, 0)


@pytest.mark.parametrize("method", [PatchCore(), PaDiM(dimensions=4)])
def test_the_state_loads_into_a_new_method(method: AnomalyMethod) -> None:
    assert not method.is_fitted
    method.fit(batches(draw_maps(12)), 12, 0)
    other = type(method)()
    other.load_state_dict(method.state_dict())
    new = draw_maps(3, 2)
    assert other.is_fitted
    assert torch.equal(method.score(new, (16, 16)).map, other.score(new, (16, 16)).map)
    assert {*method.constant_buffers} == {*method.state_dict()}


# --- threshold


def test_a_threshold_keeps_its_promise_on_every_distribution() -> None:
    draw = np.random.default_rng(0)
    for count, rate in ((19, 0.05), (50, 0.1), (200, 0.05)):
        alarm, rates = AlarmThreshold(rate), []
        for _ in range(2000):
            scores = draw.exponential(size=count)
            alarm.fit(torch.from_numpy(scores), torch.from_numpy(scores))
            promise = alarm.promise
            rates.append(float(np.exp(-promise.threshold)))  # the probability that another one exceeds it
        assert promise.expected <= rate
        assert np.mean(rates) == pytest.approx(promise.expected, rel=0.05)
        assert np.mean(np.array(rates) <= promise.bound) == pytest.approx(0.95, abs=0.015)
        k = promise.examples - promise.above
        assert promise.bound == pytest.approx(stats.beta.ppf(0.95, count + 1 - k, k))
        assert k == np.ceil((count + 1) * (1 - rate) - 1e-9)


def test_few_normal_examples_promise_little() -> None:
    alarm = AlarmThreshold(0.01)
    with pytest.raises(InputError, match="threshold is not set"):
        _ = alarm.promise
    alarm.fit(torch.arange(9.0), torch.arange(9.0))
    promise = alarm.promise
    assert (promise.threshold, promise.above, promise.expected) == (8.0, 0, 0.1)
    assert alarm.needed == 99
    assert AlarmThreshold(0.05).needed == 19
    assert "false alarms are expected for 10.0% of normal examples" in str(promise)
    with pytest.raises(InputError, match=r"false_alarm_rate is 1: give a share above 0 and below 1"):
        AlarmThreshold(1)


def test_the_documentation_quotes_a_promise_of_100_examples() -> None:
    alarm = AlarmThreshold(0.05)
    scores = torch.arange(100.0)
    alarm.fit(scores, scores)
    _, _, rest = str(alarm.promise).partition(", exceeded by ")
    shown = " ".join((ROOT / "docs" / "defects.md").read_text(encoding="utf-8").split())
    assert f"Alarm: threshold 21.4, exceeded by {rest}." in shown


def test_groups_limit_what_a_threshold_promises(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for groups, said in ((None, False), ([*"abcdefgh"], False), (["anna", "ben"] * 4, True)):
        caplog.clear()
        images = TensorStorage(torch.zeros(8, 1, 2, 2, dtype=torch.uint8))
        examples = Examples(images, [*map(str, range(8))], torch.zeros(8, dtype=torch.int64), groups)
        data = SimpleNamespace(splits={"val": Split(examples, range(8))})
        detector: Any = SimpleNamespace(alarm=AlarmThreshold(0.2), is_last_epoch=True)
        detector.trainer, detector.find_data = SimpleNamespace(global_step=1), lambda data=data: data
        AnomalyDetector._set_threshold(detector, torch.rand(8, 2))
        assert "held-out normal examples" in caplog.text
        assert ("these examples are of 2 groups, and examples of a group score alike" in caplog.text) == said


# --- metrics


def compute_pro(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """Overlap of regions at every score, by loops."""
    regions = []
    for i, mask in enumerate(masks):
        named, count = ndimage.label(mask == 1, np.ones((3, 3)))
        regions += [(i, named == k) for k in range(1, count + 1)]
    normal = masks == 0
    points = [(0.0, 0.0)]
    for t in np.unique(maps)[::-1]:
        above = maps >= t
        overlap = np.mean([above[i][inside].mean() for i, inside in regions])
        points.append((above[normal].mean(), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit < x1:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def test_metrics_equal_plain_implementations() -> None:
    draw = np.random.default_rng(0)
    masks = np.zeros((12, 20, 20), dtype=np.int64)
    for i in range(4, 12):
        masks[i, i - 2 : i + 3, 4:9], masks[i, 15:18, 12 : 12 + i % 5] = 1, 1
    masks[5, :, 15:] = -1
    masks[6] = -1
    maps = (draw.gamma(2, size=masks.shape) + 0.8 * (masks == 1)).round(1).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    scores = draw.normal(labels, 1).round(1)
    found = AnomalyMetrics()
    for rows in np.split(np.arange(12), [5, 6]):
        own = [torch.from_numpy(values[rows]) for values in (scores, labels, maps, masks)]
        found.update(*own)
    values = {n: float(v) for n, v in found.compute(0.5, ["good", "spot", "scratch"]).items()}
    is_defect = labels > 0
    assert values["auroc"] == pytest.approx(roc_auc_score(is_defect, scores))
    assert values["average_precision"] == pytest.approx(average_precision_score(is_defect, scores))
    for k, name in ((1, "spot"), (2, "scratch")):
        some = (labels == 0) | (labels == k)
        assert values[f"auroc_{name}"] == pytest.approx(roc_auc_score(is_defect[some], scores[some]))
        assert values[f"detection_rate_{name}"] == (scores[labels == k] > 0.5).mean()
    assert values["detection_rate"] == pytest.approx((scores[is_defect] > 0.5).mean())
    assert values["false_alarm_rate"] == (scores[~is_defect] > 0.5).mean()
    known = masks >= 0
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(masks[known], maps[known]), abs=1e-9)
    assert values["pro"] == pytest.approx(compute_pro(maps, masks), abs=1e-9)
    assert 0.3 < values["pro"] < 0.9


def test_metrics_that_lack_examples_are_left_out() -> None:
    found = AnomalyMetrics()
    normal = torch.zeros(3, dtype=torch.int64)
    found.update(torch.tensor([1.0, 2.0, 3.0]), normal, torch.ones(3, 4, 4), torch.zeros(3, 4, 4))
    assert {n: float(v) for n, v in found.compute(2.5, ["good"]).items()} == {"false_alarm_rate": pytest.approx(1 / 3)}
    found.update(torch.tensor([1.0, 4.0]), torch.tensor([0, 1]), torch.ones(2, 4, 4), None)
    assert {*found.compute(2.5, ["good", "bad"])} == {
        "auroc", "average_precision", "detection_rate", "false_alarm_rate"
    }  # fmt: skip


def test_levels_order_scores() -> None:
    made = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 400, 400, generator=made)
    mask = (torch.rand(1, 400, 400, generator=made) + 0.2 * scores > 0.7).long()
    found = AnomalyMetrics()
    found.update(torch.zeros(1), torch.ones(1).long(), scores, mask)
    value = float(found.compute(0.0, ["good", "bad"])["pixel_auroc"])
    assert value == pytest.approx(roc_auc_score(mask.flatten(), scores.flatten()), abs=1e-4)
    assert metrics_module._LEVELS < 2**20
