"""What is measured beside the label map: toys whose numbers are arithmetic."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.test_predictor import CT_BALL, MANIFEST

from hermes.errors import GaveWayError
from hermes.inference.engine import EngineSettings, Request, segment
from hermes.inference.findings import pairs_of, surprise
from hermes.inference.predictor import Predictor, is_wanted
from hermes.inference.tokens import ImageTokens
from hermes.model import build_network
from hermes.scoring.outliers import FEWEST, volume_outliers
from hermes.scoring.projection import LENGTH, project
from hermes.types import Modality

CPU = torch.device("cpu")


class Constant(torch.nn.Module):
    """Task k has one logit where the image is above 0, a very low one elsewhere; its token tells the image's mean."""

    def __init__(self, logits: tuple[float, ...]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def encode(self, image, task_rows, modality_rows, *, modality_known=None):
        inside = (image > 0).float()
        features = torch.cat([inside, 1 - inside], dim=1)
        chosen = self.logits[task_rows]  # (b, n)
        weights = torch.stack([chosen, torch.full_like(chosen, -50.0)], dim=2)
        mean = image.mean(dim=(1, 2, 3, 4))[:, None].expand_as(chosen)
        tokens = torch.stack([mean, chosen, torch.ones_like(chosen), -chosen], dim=2)
        logits = torch.tensor([[3.0, 0, 0, 0, 0, 0]]).expand(len(image), -1)
        return _Encoded(features, weights, logits, tokens)


class _Encoded:
    def __init__(self, features, class_weights, modality_logits, task_tokens) -> None:
        self.features, self.class_weights = features, class_weights
        self.modality_logits, self.task_tokens = modality_logits, task_tokens


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def bits(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def run(array: np.ndarray, chances: tuple[float, ...], **more: object):
    """Every task at its chance within the positive part of the array."""
    net = Constant(tuple(logit(p) for p in chances))
    n = len(chances)
    request = Request(tuple(range(n)), 0, [[]] * n, pairs=tuple(more.pop("pairs", ())))
    settings = EngineSettings(window=(16, 16, 16), findings=True, skip_air=False, **more)
    return segment(net, array, request, settings, device=CPU)


def cube() -> np.ndarray:
    array = np.full((16, 16, 40), -1.0, np.float32)
    array[4:12, 4:12, 2:20] = 1.0
    return array


def test_sums_are_those_of_the_probabilities() -> None:
    result = run(cube(), (0.8, 0.3, 0.05))
    voxels = 8 * 8 * 18
    sums = result.sums
    assert sums is not None
    assert sums.every == 1
    assert sums.voxels.tolist() == [voxels, voxels, 0]
    assert sums.inside_voxels.tolist() == [voxels, 0, 0]
    assert sums.entropy[:2] == pytest.approx([voxels * bits(0.8), voxels * bits(0.3)], rel=1e-4)
    assert sums.inside_entropy[0] == pytest.approx(voxels * bits(0.8), rel=1e-4)
    assert sums.decided[:2] == pytest.approx([voxels * 0.6, voxels * 0.4], rel=1e-4)


def test_products_measure_how_two_protocols_overlap() -> None:
    pairs = pairs_of(["liver@A", "spleen", "liver@B"])
    assert pairs == ((0, 2),)
    result = run(cube(), (0.8, 0.3, 0.5), pairs=pairs)
    assert result.sums is not None
    voxels = 8 * 8 * 18
    assert result.sums.products == pytest.approx(voxels * np.array([[0.4, 0.64, 0.25]]), rel=1e-4)


def test_large_planes_are_sampled_and_volumes_stay() -> None:
    array = np.full((40, 80, 80), -1.0, np.float32)
    array[8:32, 8:72, 8:72] = 1.0
    result = run(array, (0.8,))
    assert result.sums is not None
    assert result.sums.every == 8
    assert result.sums.inside_voxels[0] * 8 == pytest.approx(24 * 64 * 64, rel=0.05)


def test_tokens_are_averaged_where_the_structure_is() -> None:
    array = np.full((16, 16, 48), -1.0, np.float32)
    array[:, :, :16] = 1.0
    one = run(array, (0.8, 0.05), overlap=0.0).tokens
    alone = run(array[:, :, :16], (0.8, 0.05), overlap=0.0).tokens
    assert one is not None
    assert alone is not None
    # The first task is in the first window only; the second is in none, and its token is the mean of all three.
    assert np.allclose(one.tokens[0], alone.tokens[0], atol=1e-5)
    assert not np.allclose(one.tokens[1], alone.tokens[1], atol=1e-2)
    assert one.chances.sum() == pytest.approx(1.0)


def test_lanes_and_batches_change_nothing() -> None:
    plain, other = run(cube(), (0.8, 0.3)), run(cube(), (0.8, 0.3), batch=3, lanes=2)
    assert plain.tokens is not None
    assert other.tokens is not None
    assert np.allclose(plain.tokens.tokens, other.tokens.tokens, atol=1e-6)
    assert np.allclose(plain.sums.entropy, other.sums.entropy)


def test_surprise_in_bits() -> None:
    chances = np.array([0.25, 0.25, 0.25, 0.125, 0.125, 0.0])
    tokens = ImageTokens(np.zeros((1, 4), np.float32), chances)
    assert surprise(tokens, Modality.CT) == pytest.approx(2.0)
    assert surprise(tokens, None) == pytest.approx(3 * 0.25 * 2 + 2 * 0.125 * 3)


def test_findings_do_not_change_the_answer() -> None:
    torch.manual_seed(0)
    predictor = Predictor(build_network(MANIFEST.network), MANIFEST)
    names = ["liver@BCV", "liver@AMOS", "spleen"]
    plain, with_findings = predictor.predict(CT_BALL, names), predictor.predict(CT_BALL, names, findings=True)
    assert plain.findings is None
    assert np.array_equal(plain.label_map.array, with_findings.label_map.array)
    assert plain.structures == with_findings.structures
    found = with_findings.findings
    assert found is not None
    assert len(found.tokens) == 3
    assert set(found.measures["protocols"]) <= {"liver@BCV", "liver@AMOS"}
    assert set(found.measures["entropy"]) == {"", *names}
    assert found.measures["entropy"][""] == plain.uncertainty
    assert found.measures["presence"]["spleen"] == pytest.approx(plain.structures[2].presence_probability)


def test_work_in_the_background_gives_way_before_the_next_window() -> None:
    torch.manual_seed(0)
    predictor = Predictor(build_network(MANIFEST.network), replace(MANIFEST, window=(32, 16, 16)))
    seen, answers, threads = [], [], []

    def foreground() -> None:
        answers.append(predictor.predict(CT_BALL, ["liver"]))

    def on_progress(done: int, _total: int) -> None:
        seen.append(done)
        if done == 1:
            threads.append(threading.Thread(target=foreground))
            threads[0].start()
            while not is_wanted(CPU):  # it has come
                time.sleep(0.001)

    with pytest.raises(GaveWayError):
        predictor.predict(CT_BALL, ["liver"], background=True, on_progress=on_progress)
    threads[0].join()
    assert len(answers) == 1
    assert seen[-1] < answers[0].windows / 2
    assert not is_wanted(CPU)
    assert predictor.predict(CT_BALL, ["liver"], background=True).windows > 2


def test_projections_keep_distances_of_all_tokens_together() -> None:
    random = np.random.default_rng(0)
    tokens = random.standard_normal((40, 3, 200)).astype(np.float32)
    short = np.stack([project(t, [5, 0, 7]).astype(np.float32).sum(axis=0) for t in tokens])
    assert short.shape == (40, LENGTH)
    long = tokens.reshape(40, -1) / np.sqrt(200)
    ours = np.linalg.norm(short[:, None] - short[None], axis=2)[np.triu_indices(40, 1)]
    theirs = np.linalg.norm(long[:, None] - long[None], axis=2)[np.triu_indices(40, 1)]
    assert np.std(ours / theirs) < 0.15
    assert np.mean(ours / theirs) == pytest.approx(1.0, abs=0.05)
    assert np.array_equal(project(tokens[0], [5, 0, 7]), project(tokens[0], [5, 0, 7]))


def test_volume_outliers_stand_out() -> None:
    volumes = {f"case {n}": {"liver": 1500.0 + 50 * (n % 5), "gone": 0.0} for n in range(12)}
    volumes["odd"] = {"liver": 150.0}
    found = volume_outliers(volumes)
    assert max(found, key=lambda case: found[case]["liver"]) == "odd"
    assert found["odd"]["liver"] > 10 > max(found[f"case {n}"]["liver"] for n in range(12))
    assert all("gone" not in by_structure for by_structure in found.values())
    few = dict(list(volumes.items())[: FEWEST - 1])
    assert volume_outliers(few) == {}
