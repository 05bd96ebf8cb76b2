"""The streaming engine against the definition: every unique window, averaged, all in memory."""

import itertools
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile

import hermes.inference.engine
from hermes.errors import BusyError, CancelledError
from hermes.inference.engine import EngineSettings, Request, segment
from hermes.inference.lanes import Lanes, lanes_for
from hermes.inference.memory import Plan, empty_apart
from hermes.inference.windows import Layout, Order, axis_weights

torch.set_num_threads(1)
CPU = torch.device("cpu")
CHANNELS = 3
SETTINGS = EngineSettings(window=(32, 32, 32), skip_air=False)


@dataclass(frozen=True)
class FakeEncoded:
    features: Tensor
    class_weights: Tensor


class FakeNet:
    """Features that depend on the whole window, class weights that differ from window to window."""

    def __init__(self, largest_batch: int = 99) -> None:
        self.starts: list[int] = []
        self.passes: list[int] = []
        self.largest_batch = largest_batch

    def encode(self, image, task_rows, modality_rows, *, modality_known=None) -> FakeEncoded:
        if len(image) > self.largest_batch:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        self.passes.append(len(image))
        mean = image.mean(dim=(1, 2, 3, 4))
        features = torch.cat(
            [image, image.roll(1, 2) + 0.3, image.square() - mean.view(-1, 1, 1, 1, 1)], dim=1
        )
        angle = task_rows[..., None] * 1.7 + torch.arange(CHANNELS) + mean.view(-1, 1, 1) * 40
        return FakeEncoded(features, torch.cos(angle) * 2)


def volume(size=(40, 50, 70), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def request(tasks: int, **changes) -> Request:
    return replace(Request(tuple(range(tasks)), 0, tuple(() for _ in range(tasks))), **changes)


def plain_average(array: np.ndarray, rows, settings: EngineSettings) -> np.ndarray:
    layout = Layout.over(array.shape, settings.window, settings.overlap)
    padded = np.zeros(layout.padded, np.float32)
    padded[tuple(slice(0, size) for size in array.shape)] = array
    total, seen = np.zeros((len(rows), *layout.padded)), np.zeros(layout.padded)
    z, y, x = (axis_weights(length, settings.weighting).astype(float) for length in layout.window)
    weight = z[:, None, None] * y[:, None] * x
    for start in itertools.product(*layout.starts):
        place = tuple(slice(low, low + length) for low, length in zip(start, layout.window, strict=True))
        out = FakeNet().encode(torch.from_numpy(padded[place])[None, None], torch.tensor([rows]), None)
        logits = torch.einsum("nc,cdhw->ndhw", out.class_weights[0], out.features[0])
        total[(slice(None), *place)] += logits.sigmoid().numpy() * weight
        seen[place] += weight
    return (total / seen)[(slice(None), *(slice(0, size) for size in array.shape))]


def labels_of(probabilities: np.ndarray) -> np.ndarray:
    return np.where(probabilities.max(0) > 0.5, probabilities.argmax(0) + 1, 0)


def check(result, average: np.ndarray, tolerance: float = 1e-4) -> None:
    """Labels equal wherever the decision is not a matter of rounding; peaks within the tolerance."""
    two = np.sort(np.concatenate([average, np.full((1, *average.shape[1:]), 0.5)]), axis=0)[-2:]
    clear = two[1] - two[0] > tolerance
    assert clear.mean() > 0.8
    assert np.array_equal(result.labels[clear], labels_of(average)[clear])
    assert np.abs(result.presence - average.reshape(len(average), -1).max(1)).max() < tolerance


@pytest.mark.parametrize("tasks", [1, 2, 7])  # fewer and more than channels: both forms of keeping
@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_plain_average_of_unique_windows(tasks, weighting, batch) -> None:
    settings = replace(SETTINGS, weighting=weighting, batch=batch, uncertainty_map=True)
    array = volume()
    result = segment(FakeNet(), array, request(tasks), settings, device=CPU)
    average = plain_average(array, range(tasks), settings)
    check(result, average)
    p = np.clip(average, 1e-7, 1 - 1e-7)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    least = np.abs(average - 0.5).min(0)
    clear = np.abs(least - 0.4) > 1e-4
    assert result.uncertainty_map is not None
    expected = np.where(least <= 0.4, bits.max(0), 0)
    assert np.abs(result.uncertainty_map - expected)[clear].max() < 2e-3
    means = [bits[k][average[k] >= 0.1].mean() for k in range(tasks)]
    assert np.abs(result.uncertainty - means).max() < 2e-3
    assert result.windows == 2 * 3 * 4


@pytest.mark.parametrize("size", [(1, 33, 16), (32, 32, 32), (5, 5, 5), (33, 65, 31)])
def test_any_size(size) -> None:
    array = volume(size)
    check(
        segment(FakeNet(), array, request(4), SETTINGS, device=CPU), plain_average(array, range(4), SETTINGS)
    )


@pytest.mark.parametrize(("side", "passes"), [(128, 1), (192, 8), (256, 27)])
def test_the_number_of_passes(side, passes) -> None:
    assert len(Layout.over((side,) * 3, (128, 128, 128))) == passes


@pytest.mark.parametrize("budget", [0, 10**6, 10**12])
def test_a_budget_changes_the_plan_and_hardly_the_result(budget) -> None:
    array = volume()
    settings = replace(SETTINGS, budget_bytes=budget)
    result = segment(FakeNet(), array, request(7), settings, device=CPU)
    assert result.plan is not None
    assert result.plan.half == (budget <= 10**6)
    tolerance = 1e-3 if result.plan.half else 1e-4
    check(result, plain_average(array, range(7), settings), tolerance)


def test_running_out_of_memory_halves_the_batch_and_changes_nothing() -> None:
    array, settings = volume(), replace(SETTINGS, batch=4)
    net = FakeNet(largest_batch=1)
    result = segment(net, array, request(7), settings, device=CPU)
    assert result.plan is not None
    assert result.plan.batch == 1
    assert sum(net.passes) == 24  # every window exactly once
    plain = segment(FakeNet(), array, request(7), settings, device=CPU)
    assert np.array_equal(result.labels, plain.labels)
    assert np.allclose(result.presence, plain.presence, atol=1e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_running_out_of_memory_in_a_slab_makes_slabs_smaller(monkeypatch, error) -> None:
    array = volume()
    plain = segment(FakeNet(), array, request(7), SETTINGS, device=CPU)
    original = hermes.inference.engine.Averager.average
    sizes = []

    def limited(self, pieces, slab):
        voxels = int(np.prod([high - low for low, high in slab]))
        if voxels > 4000:
            raise error
        sizes.append(voxels)
        return original(self, pieces, slab)

    monkeypatch.setattr(hermes.inference.engine.Averager, "average", limited)
    result = segment(FakeNet(), array, request(7), SETTINGS, device=CPU)
    assert sum(sizes) == array.size  # each voxel was reduced exactly once
    assert np.array_equal(result.labels, plain.labels)
    assert np.allclose(result.uncertainty, plain.uncertainty, atol=1e-5)
    assert result.image_uncertainty == pytest.approx(plain.image_uncertainty, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_lanes_side_by_side_change_nothing(batch) -> None:
    array = volume()
    settings = replace(SETTINGS, uncertainty_map=True, batch=batch)
    plain = segment(FakeNet(), array, request(7), settings, device=CPU)
    net = FakeNet()
    result = segment(net, array, request(7), replace(settings, lanes=3), device=CPU)
    assert sorted(net.passes) == [batch] * (24 // batch)
    assert np.array_equal(result.labels, plain.labels)
    assert np.array_equal(result.uncertainty_map, plain.uncertainty_map)
    assert np.allclose(result.uncertainty, plain.uncertainty, atol=1e-6)
    assert result.image_uncertainty == pytest.approx(plain.image_uncertainty, abs=1e-6)


def test_lanes_give_up_their_windows_when_memory_runs_out() -> None:
    class Crowded(FakeNet):
        """Has memory for one window at a time."""

        def __init__(self) -> None:
            super().__init__()
            self.inside = threading.Semaphore(1)
            self.failures = 0

        def encode(self, image, *others, **more) -> FakeEncoded:
            if not self.inside.acquire(blocking=False):
                self.failures += 1
                raise MemoryError
            try:
                time.sleep(0.02)  # long enough to meet the other lane
                return super().encode(image, *others, **more)
            finally:
                self.inside.release()

    array, net = volume((40, 40, 40)), Crowded()
    result = segment(net, array, request(4), replace(SETTINGS, lanes=2), device=CPU)
    assert net.failures >= 1
    assert result.plan is not None
    assert result.plan.batch == 1
    assert np.array_equal(result.labels, segment(FakeNet(), array, request(4), SETTINGS, device=CPU).labels)


def test_the_first_error_of_a_lane_is_raised_and_threads_end() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), Lanes(2) as lanes:
        lanes.map(lambda value: 1 // value, [1, 0, 2])
    assert threading.active_count() == before


def test_lanes_are_for_small_windows_on_cpus(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert lanes_for(CPU, (64, 64, 96)) == 4
    assert lanes_for(CPU, (96, 96, 96)) == lanes_for(torch.device("cuda"), (32, 32, 32)) == 1


def test_lanes_record_no_gradients() -> None:
    with Lanes(2) as lanes:
        assert lanes.map(lambda _: torch.is_grad_enabled(), range(4)) == [False] * 4
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_weights_are_converted_once_for_all_windows() -> None:
    layer = torch.nn.Linear(4, 4)

    def run(_: int) -> int:
        with torch.autocast("cpu", torch.bfloat16), profile() as records:
            layer(torch.zeros(1, 4, dtype=torch.bfloat16))
        return sum(record.name == "aten::_to_copy" for record in records.function_events)

    with Lanes(1) as lanes:
        first, *others = lanes.map(run, range(3))
    assert first > 0
    assert others == [0, 0]


def test_other_errors_are_not_swallowed(monkeypatch) -> None:
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(hermes.inference.engine.Averager, "average", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        segment(FakeNet(), volume(), request(2), SETTINGS, device=CPU)


def test_no_memory_at_all_is_an_error() -> None:
    with pytest.raises(BusyError, match="enough memory"):
        segment(FakeNet(largest_batch=0), volume(), request(2), SETTINGS, device=CPU)


def test_a_plan_gives_up_batch_then_slab_then_the_gpu() -> None:
    plan: Plan | None = Plan(4, 4 * 64 * 1024, half=False, on_cpu=False)
    steps = []
    while plan is not None:
        steps.append((plan.batch, plan.slab_bytes, plan.on_cpu))
        plan = plan.smaller()
    k = 64 * 1024
    assert steps == [(4, 4 * k, False), (2, 4 * k, False), (1, 4 * k, False), (1, k, False), (1, k, True)]


def test_air_is_skipped_and_stays_background() -> None:
    array = volume((32, 32, 160))
    array[:, :, 64:] = -3.0 + 0.01 * array[:, :, 64:]
    settings = replace(SETTINGS, skip_air=True)
    result = segment(FakeNet(), array, request(2, air_level=-2.5), settings, device=CPU)
    assert (result.windows, result.windows_skipped) == (4, 5)
    assert not result.labels[:, :, 80:].any()
    assert result.labels[:, :, :64].any()
    every = segment(FakeNet(), array, request(2, air_level=-2.5), SETTINGS, device=CPU)
    assert np.array_equal(every.labels[:, :, :64], result.labels[:, :, :64])
    assert (every.windows, every.windows_skipped) == (9, 0)


def test_memory_apart_goes_back_when_the_tensor_goes() -> None:
    resident = psutil.Process().memory_info
    tensor = empty_apart((64, 1024, 1024), torch.float16, CPU).fill_(3)
    assert (tensor.shape, tensor.dtype, float(tensor.sum(dtype=torch.float64))) == (
        (64, 1024, 1024),
        torch.float16,
        3 * 2**26,
    )
    full = resident().rss
    del tensor
    assert full - resident().rss > 120 * 2**20
    assert empty_apart((0, 3), torch.float32, CPU).shape == (0, 3)


def test_an_empty_image_needs_no_pass() -> None:
    net = FakeNet()
    settings = replace(SETTINGS, skip_air=True)
    result = segment(net, np.zeros((40, 40, 40), np.float32), request(3), settings, device=CPU)
    assert not net.passes
    assert not result.labels.any()
    assert result.presence.tolist() == [0, 0, 0]


def test_a_region_of_interest_gets_the_labels_of_the_whole() -> None:
    array = volume((64, 64, 96))
    box = ((10, 30), (40, 60), (5, 20))
    whole = segment(FakeNet(), array, request(5), SETTINGS, device=CPU)
    part = segment(FakeNet(), array, request(5, roi=box), SETTINGS, device=CPU)
    inside = tuple(slice(*bounds) for bounds in box)
    assert np.array_equal(part.labels[inside], whole.labels[inside])
    assert np.count_nonzero(part.labels) == np.count_nonzero(part.labels[inside]) > 0
    assert part.windows < whole.windows == part.windows + part.windows_skipped


def test_progress_counts_every_window_and_stopping_stops() -> None:
    seen = []
    segment(FakeNet(), volume(), request(2), SETTINGS, device=CPU, on_progress=lambda *at: seen.append(at))
    assert seen == [(done, 24) for done in range(1, 25)]
    net = FakeNet()
    with pytest.raises(CancelledError, match="stopped"):
        segment(net, volume(), request(2), SETTINGS, device=CPU, should_stop=lambda: len(net.passes) >= 3)
    assert len(net.passes) == 3


@pytest.mark.parametrize("size", list(itertools.permutations((33, 60, 100))))
@pytest.mark.parametrize("tasks", [2, 5])
def test_any_order_of_axes_with_windows_of_any_shape(size, tasks) -> None:
    array = volume(size)
    settings = replace(SETTINGS, window=(32, 48, 16))
    box = ((3, 30), (20, 33), (10, 32))
    for roi in (None, box):
        result = segment(FakeNet(), array, request(tasks, roi=roi), settings, device=CPU)
        average = plain_average(array, range(tasks), settings)
        if roi is None:
            check(result, average)
        inside = tuple(slice(*bounds) for bounds in box)
        assert np.mean(result.labels[inside] == labels_of(average)[inside]) > 0.999
        assert result.labels.flags.c_contiguous


def test_what_is_kept_grows_with_no_axis_but_the_shorter_ones(monkeypatch) -> None:
    def most_kept(*size: int) -> int:
        most = 0
        original = hermes.inference.engine._Run._finish

        def watched(self, layer, line):
            nonlocal most
            most = max(most, sum(piece.values.numel() for pieces in self.kept.values() for piece in pieces))
            original(self, layer, line)

        with monkeypatch.context() as patch:
            patch.setattr(hermes.inference.engine._Run, "_finish", watched)
            segment(FakeNet(), volume(size), request(5), SETTINGS, device=CPU)
        return most

    kept = most_kept(80, 64, 32)
    assert kept == most_kept(160, 64, 32) == most_kept(64, 160, 32) == most_kept(32, 64, 160)
    # Also where the last windows, flush with the border, share most of themselves with those before.
    assert most_kept(84, 64, 32) < 1.5 * kept
    for size in ((160, 64, 32), (84, 52, 40), (20, 100, 90)):
        layout = Layout.over(size, SETTINGS.window)
        turned = Layout.over(Order.of(layout).turn(size), SETTINGS.window)
        assert most_kept(*size) == turned.most_kept * CHANNELS * 32**3
