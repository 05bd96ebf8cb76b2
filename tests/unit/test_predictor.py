"""The predictor, from a file to a label map, with a small untrained network."""

import threading
from dataclasses import dataclass, replace

import nibabel
import numpy as np
import pytest
import torch

from hermes.cache import VolumeCache
from hermes.checkpoint import Manifest
from hermes.errors import BadImageError, BadRequestError, UnknownStructureError
from hermes.geometry import Grid
from hermes.inference.labelmap import resolve
from hermes.inference.predictor import Predictor, containers_of
from hermes.inference.region import Region
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.records import LabelMap, Volume
from hermes.transforms.preparation import PreparationSpec
from hermes.types import Modality

torch.set_num_threads(1)
SPACE = LabelSpace(
    (
        Task("liver", "BCV", (Modality.CT,)),
        Task("liver tumor", "LiTS", (Modality.CT,)),
        Task("spleen", "BCV", (Modality.CT, Modality.T1)),
        Task("liver", "AMOS", (Modality.CT, Modality.T1)),
    )
)
MANIFEST = Manifest(
    network=NetworkConfig("hermes-c", 4, 4),
    label_space=SPACE,
    preparation=PreparationSpec(spacing_mm=3.0),
    window=(32, 32, 32),
    version="v7",
)


@dataclass(frozen=True)
class Answer:
    features: torch.Tensor
    class_weights: torch.Tensor
    modality_logits: torch.Tensor


class Bright(torch.nn.Module):
    """Task k is where the intensity is above its threshold; the modality head says what it is told."""

    def __init__(self, modality_logits=(0.0,) * 6, thresholds=(0.5, 1.5, -0.5, 0.5)) -> None:
        super().__init__()
        self.modality_logits, self.thresholds = modality_logits, thresholds
        self.asked: list[tuple[list[int], bool, int]] = []
        self.running = 0

    def encode(self, image, task_rows, modality_rows, *, modality_known=None) -> Answer:
        self.running += 1
        assert self.running == 1, "two passes at a time on one device"
        self.asked.append((task_rows[0].tolist(), bool(modality_known[0]), int(modality_rows[0])))
        features = torch.cat([image, torch.ones_like(image)], dim=1)
        weights = torch.tensor([[20.0, -20.0 * self.thresholds[row]] for row in task_rows[0]])
        self.running -= 1
        return Answer(
            features, weights.expand(len(image), -1, -1), torch.tensor([self.modality_logits] * len(image))
        )


def ball(shape=(30, 40, 50)) -> np.ndarray:
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    far = np.sqrt(((z - 15) / 15) ** 2 + ((y - 20) / 20) ** 2 + ((x - 20) / 20) ** 2)
    return np.where(far < 0.3, 200.0, np.where(far < 0.7, 100.0, np.where(far < 1, 0.0, -990.0))).astype(
        np.float32
    )


def oblique_grid(shape=(30, 40, 50)) -> Grid:
    turn = np.array([[0.0, -0.96, 0.28], [1.0, 0.0, 0.0], [0.0, -0.28, -0.96]])
    return Grid.from_axes(shape, (10, -20, 30), (3.0, 3.0, 3.0), turn)


CT_BALL = Volume(ball(), oblique_grid(), Modality.CT, "dicom", 1.0)


def test_labels_counts_and_volumes_are_those_of_the_images_own_grid() -> None:
    predictor = Predictor(Bright(), MANIFEST)
    result = predictor.predict(CT_BALL, ["liver@BCV", "liver tumor"])
    assert result.label_map.grid == CT_BALL.grid
    array = result.label_map.array
    assert array.dtype == np.uint8
    # Same spacing, so exact: the tumor wins over the liver that contains it.
    assert np.array_equal(array == 2, CT_BALL.array == 200)
    liver, tumor = result.structures
    assert (liver.structure, liver.task, liver.value) == ("liver", "liver@BCV", 1)
    assert tumor.voxel_count == int((CT_BALL.array == 200).sum())
    assert tumor.volume_ml == pytest.approx(tumor.voxel_count * 0.027)
    assert result.label_map.names == {1: "liver", 2: "liver tumor"}
    assert result.model_version == "v7"
    assert (result.modality, result.modality_source) == (Modality.CT, "dicom")
    assert result.windows > 0
    assert {"prepare", "network", "reduce", "restore", "total"} <= set(result.timings_s)


def test_absent_structures_say_so() -> None:
    predictor = Predictor(Bright(thresholds=(99.0, 1.0, 0, 0)), MANIFEST)
    liver, tumor = predictor.predict(CT_BALL, ["liver@BCV", "liver tumor"]).structures
    assert (liver.voxel_count, liver.volume_ml, liver.uncertainty) == (0, 0.0, 0.0)
    assert liver.presence_probability < 0.01 < 0.99 < tumor.presence_probability


def test_rows_may_be_given_under_a_campaigns_own_names() -> None:
    net = Bright()
    result = Predictor(net, MANIFEST).predict(CT_BALL, {"my liver": 3, "my spleen": 2})
    assert [item.structure for item in result.structures] == ["my liver", "my spleen"]
    assert all(rows == [3, 2] for rows, _, _ in net.asked)


def test_nothing_named_means_all_that_fit_and_were_learned() -> None:
    result = Predictor(Bright(), replace(MANIFEST, trained_rows=(2, 3))).predict(CT_BALL)
    assert {item.task for item in result.structures} == {"liver@AMOS", "spleen@BCV"}
    with pytest.raises(UnknownStructureError, match="livr"):
        Predictor(Bright(), MANIFEST).predict(CT_BALL, ["livr"])
    with pytest.raises(BadRequestError, match="at least one structure"):
        Predictor(Bright(), MANIFEST).predict(CT_BALL, [])


def test_one_structure_of_two_protocols_keeps_both_names() -> None:
    result = Predictor(Bright(), MANIFEST).predict(CT_BALL, ["liver@BCV", "liver@AMOS"])
    assert set(result.label_map.names.values()) == {"liver@BCV", "liver@AMOS"}


def test_the_network_decides_a_modality_that_nobody_states() -> None:
    unknown = Volume(ball() + 1000, oblique_grid())
    net = Bright(modality_logits=(0, 0, 9, 0, 0, 50))
    result = Predictor(net, MANIFEST).predict(unknown, ["spleen"])
    assert (result.modality, result.modality_source) == (Modality.T1, "network")
    assert result.modality_confidence > 0.9
    assert net.asked[0][1] is False  # the first pass knows no modality
    assert all(known and row == Modality.T1.row for _, known, row in net.asked[1:])


def test_of_an_image_of_one_intensity_nobody_knows_the_modality() -> None:
    net = Bright(modality_logits=(0, 0, 9, 0, 0, 0))
    flat = Volume(np.full_like(ball(), 7.0), oblique_grid())
    result = Predictor(net, MANIFEST).predict(flat, ["spleen"])
    assert (result.modality, result.modality_source, result.modality_confidence) == (None, "unknown", 0.0)


def test_an_undecided_network_leaves_the_modality_unknown() -> None:
    net = Bright()
    result = Predictor(net, MANIFEST).predict(Volume(ball() + 1000, oblique_grid()), ["spleen"])
    assert (result.modality, result.modality_source) == (None, "unknown")
    assert not any(known for _, known, _ in net.asked)


def test_the_caller_overrides(tmp_path) -> None:
    for cache in (None, VolumeCache(tmp_path)):
        result = Predictor(Bright(), MANIFEST, cache=cache).predict(CT_BALL, ["spleen"], modality=Modality.T1)
        assert (result.modality, result.modality_source) == (Modality.T1, "caller")


def test_a_region_limits_the_labels() -> None:
    predictor = Predictor(Bright(), MANIFEST)
    whole = predictor.predict(CT_BALL, ["liver@BCV", "liver tumor"])
    region = Region.around(whole.label_map, [2], margin_mm=0.0)
    part = predictor.predict(CT_BALL, ["liver@BCV", "liver tumor"], region=region)
    assert np.array_equal(part.label_map.array == 2, whole.label_map.array == 2)
    assert 0 < (part.label_map.array == 1).sum() < (whole.label_map.array == 1).sum()
    with pytest.raises(BadRequestError, match="within the image"):
        predictor.predict(CT_BALL, ["liver"], region=Region((9e3, 9e3, 9e3), (1e4, 1e4, 1e4)))
    with pytest.raises(BadRequestError, match="label map with"):
        Region.around(LabelMap(np.zeros((1, 1, 1), np.uint8), Grid((1, 1, 1), np.eye(4))), [1], 0.0)


def test_uncertainty_is_highest_at_the_border() -> None:
    soft = Volume(ball().clip(-200), oblique_grid(), Modality.CT)
    result = Predictor(Bright(), MANIFEST).predict(soft, ["liver@BCV"], uncertainty_map=True)
    assert result.uncertainty_map is not None
    assert result.uncertainty_map.shape == soft.grid.shape
    assert 0 <= result.uncertainty <= 1
    assert Predictor(Bright(), MANIFEST).predict(soft, ["liver@BCV"]).uncertainty_map is None


def test_threads_take_turns() -> None:
    predictor = Predictor(Bright(), MANIFEST)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(predictor.predict(CT_BALL, ["liver"]).label_map.array))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(results[0], other) for other in results)


def test_a_real_network_from_a_file_and_from_the_cache(tmp_path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "abdomen_ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(ball().transpose(2, 1, 0), oblique_grid().affine_ras), path)
    net = build_network(MANIFEST.network)
    cached = Predictor(net, MANIFEST, cache=VolumeCache(tmp_path / "cache"))
    results = [Predictor(net, MANIFEST).predict(path), cached.predict(path), cached.predict(path)]
    assert results[0].modality_source == "name"
    assert results[0].label_map.grid.matches(oblique_grid())
    for other in results[1:]:
        assert np.array_equal(other.label_map.array, results[0].label_map.array)
    with pytest.raises(BadImageError, match="nothing at the given path"):
        cached.predict(tmp_path / "absent.nii.gz")


def test_containers_reach_through() -> None:
    assert list(containers_of(["liver tumor", "spleen", "liver"])) == [[2], [], []]


def test_overlaps_follow_the_stated_rule() -> None:
    # voxels: only liver; liver surer than its tumor; spleen surer than liver; tumor against spleen; nothing
    p = torch.tensor([[0.9, 0.9, 0.6, 0.9, 0.5], [0.1, 0.6, 0.2, 0.6, 0.4], [0.2, 0.1, 0.7, 0.8, 0.3]])
    assert resolve(p, [0, 1, 2], [[], [0], []]).tolist() == [1, 2, 3, 3, 0]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(BadRequestError, match="precision"):
        Predictor(Bright(), MANIFEST, precision="fp8")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (8, 8, 8), (16, 16, 16), (17, 3, 40)])
def test_tiny_volumes_are_padded_to_the_window(shape):
    torch.manual_seed(0)
    net = build_network(MANIFEST.network)
    seen = []
    net.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    array = np.random.default_rng(0).normal(40, 300, shape).astype(np.float32)
    volume = Volume(array, Grid.from_axes(shape, (0, 0, 0), (3, 3, 3)), Modality.CT, "caller", 1.0)
    prediction = Predictor(net, MANIFEST).predict(volume, ["spleen"])
    assert prediction.label_map.array.shape == shape
    assert set(seen) <= {(32, 32, 32)}
    assert len(seen) == (0 if np.prod(shape) == 1 else len(range(0, max(1, shape[2] - 16), 16)))
