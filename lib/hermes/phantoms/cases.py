"""One phantom case: anatomy, pose, grid, contrast, noise and the label map of its protocol."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hermes.errors import BadRequestError
from hermes.phantoms import abdomen, scanner, thorax, trunk
from hermes.phantoms.datasets import PhantomDataset, dataset
from hermes.phantoms.head import head_parts
from hermes.phantoms.heart import HeartSize, heart_parts
from hermes.phantoms.render import Part, Rendering, body_points, render
from hermes.phantoms.shapes import Shape, rotation
from hermes.phantoms.tissues import CINE, CT_PHASES, HEAD_T1, scattered, trunk_contrast
from hermes.types import Modality, StructureName

SIZES = {"tiny": 1.9, "small": 1.0, "large": 0.6}
"""Name of a size -> factor on the spacing; the field of view stays."""

_EXTENT_MM = {
    "abdomen": (378.0, 262.0, 285.0),
    "thorax": (384.0, 266.0, 270.0),
    "trunk": (376.0, 260.0, 500.0),
    "head": (176.0, 214.0, 186.0),
}
"""Field of view (x, y, z) of a body of average size."""
_MIDDLE_Z_MM = {"abdomen": 0.0, "thorax": 190.0, "trunk": 75.0, "head": -2.0}


@dataclass(frozen=True)
class PhantomCase:
    """One image with its truth.

    Attributes:
        name: file stem, e.g. ``PhantomAbdomenCT_0007``.
        dataset: name of the dataset, which is the name of the protocol.
        modality: of the image.
        image: ``(D, H, W)`` float32: HU (CT), SUV (PET) or arbitrary units (MR).
        affine: (4, 4) float64, voxel (x, y, z, 1) to LPS mm.
        labels: ``(D, H, W)`` uint8, 0 is background.
        names: label value -> structure, for every structure of the protocol.
        present: structures with at least one voxel.
        absent: the other structures of the protocol.
        seed: what it was made from.
        series: what a scanner console would call the series, e.g. ``CT abdomen portal venous``.
    """

    name: str
    dataset: str
    modality: Modality
    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    labels: NDArray[np.uint8]
    names: Mapping[int, StructureName]
    present: tuple[StructureName, ...]
    absent: tuple[StructureName, ...]
    seed: int
    series: str


@dataclass(frozen=True)
class _Scene:
    """Everything that is drawn before a voxel is computed."""

    parts: list[Part]
    contrast: dict[str, float]
    series: str
    background: float = 0.0
    outline: Shape | None = None


@dataclass(frozen=True)
class _Grid:
    """Shape (D, H, W), affine to LPS mm, and where the body lies in it."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    body_from_world: NDArray[np.float64]

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


def case_name(name: str, seed: int) -> str:
    """What the case ``seed`` of the dataset ``name`` is called, without making it."""
    return f"{name}_{seed:04d}"


def make_case(
    name: str, seed: int, *, size: str = "small", phase: float | None = None, plain_axes: bool = False
) -> PhantomCase:
    """The case ``seed`` of the dataset ``name``; the same arguments give the same arrays.

    Args:
        name: name of a dataset.
        seed: any non-negative integer.
        size: ``tiny``, ``small`` or ``large``: the same field of view with fewer or more voxels.
        phase: of the heart cycle, 0 (end-diastole) to 1, for cine only; None draws one.
        plain_axes: keep the array in LPS order: x, y, z grow to left, posterior, superior (for cine: the
            slices' own order). Otherwise half of the cases are stored flipped or in another axis order.

    Raises:
        NotFoundError: no such dataset.
        BadRequestError: an unknown size.
    """
    if size not in SIZES:
        msg = f"Expected a size out of {sorted(SIZES)}, got {size!r}. Use one of these."
        raise BadRequestError(msg)
    which = dataset(name)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    modality = which.modalities[int(rng.integers(len(which.modalities)))]
    drawn_phase = float(rng.choice([0.0, 1.0, rng.uniform()]))
    make_scene = {"head": _head_scene, "heart": _heart_scene}.get(which.body, _trunk_scene)
    grid = (_heart_grid if which.body == "heart" else _body_grid)(which, modality, SIZES[size], rng)
    scene = make_scene(which, modality, rng, drawn_phase if phase is None else phase)
    body_from_voxel = grid.body_from_world @ grid.affine
    points = body_points(grid.shape, body_from_voxel, rng, 0.0 if which.body == "heart" else 4.0)
    if scene.outline is not None:
        points = np.concatenate([points, scene.outline.depth(points)[np.newaxis]])
    rendering = render(scene.parts, scene.contrast, points, body_from_voxel, scene.background)
    image = _scan(rendering, points, grid, modality, rng)
    labels = _draw_labels(rendering, which)
    image, labels, affine = _stored(image, labels, grid.affine, rng, plain=plain_axes)
    return _finished(which, seed, modality, scene.series, (image, labels, affine))


def _finished(
    which: PhantomDataset,
    seed: int,
    modality: Modality,
    series: str,
    arrays: tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.float64]],
) -> PhantomCase:
    image, labels, affine = arrays
    names = dict(enumerate(which.structures, start=1))
    seen = set(np.unique(labels).tolist())
    return PhantomCase(
        name=case_name(which.name, seed),
        dataset=which.name,
        modality=modality,
        image=np.ascontiguousarray(image, dtype=np.float32),
        affine=affine,
        labels=np.ascontiguousarray(labels),
        names=names,
        present=tuple(n for v, n in names.items() if v in seen),
        absent=tuple(n for v, n in names.items() if v not in seen),
        seed=seed,
        series=series,
    )


def _scan(
    rendering: Rendering,
    points: NDArray[np.float64],
    grid: _Grid,
    modality: Modality,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    if modality is Modality.CT:
        return scanner.computed_tomography(rendering.image, rng)
    image = scanner.texture(rendering.image, rng, 0.035 if modality is not Modality.PET else 0.08)
    if modality is Modality.PET:
        return scanner.emission(image, grid.spacing_zyx_mm, rng)
    return scanner.magnetic_resonance(image, points, rng)


def _draw_labels(rendering: Rendering, which: PhantomDataset) -> NDArray[np.uint8]:
    labels = np.zeros(rendering.regions.shape, dtype=np.uint8)
    plus = ndimage.generate_binary_structure(3, 1)
    for value, drawing in enumerate(which.drawings, start=1):
        mask = rendering.mask(drawing.regions)
        if drawing.margin_voxels > 0:
            mask = ndimage.binary_dilation(mask, plus, iterations=drawing.margin_voxels)
        labels[mask] = value
    return labels


def _stored(
    image: NDArray[np.float64],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    plain: bool,
) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.float64]]:
    """The same voxels in another axis order, as files come: mostly LPS, often RAS, sometimes anything."""
    kind = rng.choice(4, p=[0.5, 0.25, 0.15, 0.1])
    orders = list(permutations(range(3)))
    order = orders[int(rng.integers(len(orders)))] if kind == 3 else (0, 1, 2)
    flips = [(False, False, False), (True, True, False), (False, False, True)]
    flip = flips[kind] if kind < 3 else tuple(bool(f) for f in rng.integers(2, size=3))
    if plain:
        return image, labels, affine
    step = np.eye(4)  # new voxel (x, y, z) -> old voxel
    size_xyz = image.shape[::-1]
    step[:3, :3] = 0.0
    for new, old in enumerate(order):
        step[old, new] = -1.0 if flip[old] else 1.0
        step[old, 3] = size_xyz[old] - 1.0 if flip[old] else 0.0
    axes = tuple(2 - order[2 - k] for k in range(3))  # arrays are (z, y, x)
    turned = tuple(slice(None, None, -1 if flip[2 - k] else 1) for k in range(3))
    return image[turned].transpose(axes), labels[turned].transpose(axes), affine @ step


def _rigid(turn: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) that maps local coordinates to world ones: rotate, then move to ``middle``."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, middle
    return matrix


def _grid_affine(
    turn: NDArray[np.float64],
    spacing: NDArray[np.float64],
    count: NDArray[np.int64],
    middle: NDArray[np.float64],
) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = middle - affine[:3, :3] @ ((count - 1) / 2.0)
    return affine


def _body_grid(which: PhantomDataset, modality: Modality, factor: float, rng: np.random.Generator) -> _Grid:
    """A grid around a randomly posed body; one in five is oblique."""
    base, slice_range = {
        "head": ((2.3, 2.8), (1.0, 1.15)), "trunk": ((5.0, 5.8), (0.9, 1.1)),
    }.get(which.body, ((4.0, 4.9), (0.9, 1.3)))  # fmt: skip
    in_plane = rng.uniform(*base)
    spacing = np.round(np.array([in_plane, in_plane, in_plane * rng.uniform(*slice_range)]) * factor, 3)
    if modality in (Modality.T1, Modality.T2) and which.body == "abdomen":
        spacing[2] = round(float(spacing[2] * rng.uniform(1.0, 1.35)), 3)
    scale = rng.normal(1.0, 0.035) * np.exp(rng.normal(0.0, 0.015, size=3))
    extent = np.array(_EXTENT_MM[which.body]) * np.clip(scale, 0.9, 1.1)
    count = np.round(extent / spacing).astype(np.int64)
    oblique = rng.normal(0.0, 5.0, size=3) * (rng.uniform() < 0.2)
    middle = rng.normal(0.0, 60.0, size=3).round(2)
    affine = _grid_affine(rotation(oblique), spacing, count, middle)
    spread = 7.0 if which.body == "head" else 3.5
    pose = rotation(np.clip(rng.normal(size=3), -2.0, 2.0) * spread)
    offset = rng.normal(size=3) * np.array([5.0, 4.0, 10.0 if which.body != "head" else 4.0])
    world_from_body = _rigid(
        pose * scale, middle + offset - pose @ np.array([0.0, 0.0, _MIDDLE_Z_MM[which.body]])
    )
    shape = (int(count[2]), int(count[1]), int(count[0]))
    return _Grid(shape, affine, np.linalg.inv(world_from_body))


def _heart_grid(_: PhantomDataset, __: Modality, factor: float, rng: np.random.Generator) -> _Grid:
    """Short-axis slices: thick, few, oblique by nature, from apex to base."""
    in_plane = round(float(rng.uniform(1.45, 1.8) * factor), 3)
    slices, side = int(rng.integers(9, 13)), int(np.round(150.0 / in_plane / 2.0) * 2)
    spacing = np.array([in_plane, in_plane, round(float(rng.uniform(8.0, 10.0)), 2)])
    count = np.array([side, side, slices])
    # Apex to base points to the patient's right, posterior and up.
    base = np.array([-0.62, 0.55, 0.56]) + rng.normal(0.0, 0.06, size=3)
    base /= np.linalg.norm(base)
    across = np.array([0.72, 0.66, 0.12]) + rng.normal(0.0, 0.06, size=3)
    across -= base * (across @ base)
    across /= np.linalg.norm(across)
    turn = np.stack([across, np.cross(base, across), base], axis=1)
    middle = rng.normal(0.0, 40.0, size=3).round(2)
    affine = _grid_affine(turn, spacing, count, middle)
    pose = turn @ rotation((*rng.normal(0.0, 3.0, size=2), rng.normal(0.0, 14.0)))
    offset = turn @ (rng.normal(size=3) * np.array([6.0, 6.0, 3.0]) + np.array([6.0, 4.0, 0.0]))
    shape = (slices, side, side)
    return _Grid(shape, affine, np.linalg.inv(_rigid(pose, middle + offset)))


def _trunk_scene(which: PhantomDataset, modality: Modality, rng: np.random.Generator, _: float) -> _Scene:
    wall = trunk.draw_wall(rng)
    with_table = modality is Modality.CT and rng.uniform() < 0.5
    parts = [trunk.table_part(rng)] if with_table else []
    parts += [*trunk.wall_parts(wall), *trunk.pelvis_parts(wall, rng), *trunk.spine_parts(rng)]
    parts += [*thorax.thorax_parts(wall, rng), *_organs(which, wall, rng)]
    if which.body == "trunk":
        parts += thorax.lesion_parts(wall, rng, int(rng.integers(1, 6)) if rng.uniform() > 0.08 else 0)
    phase = CT_PHASES[int(rng.choice(3, p=[0.25, 0.3, 0.45]))]
    dark_fat = modality is Modality.T2 and rng.uniform() < 0.4
    contrast = trunk_contrast(rng, modality, phase, fat_suppressed=dark_fat)
    label = {
        Modality.CT: f"CT {which.body} {phase}",
        Modality.PET: "PET whole body attenuation corrected",
        Modality.T1: "T1w gradient echo axial",
        Modality.T2: "T2w turbo spin echo axial",
    }[modality]
    return _Scene(
        parts, contrast, f"{label} fat saturated" if dark_fat else label, contrast["air"], wall.skin
    )


def _organs(which: PhantomDataset, wall: trunk.Wall, rng: np.random.Generator) -> list[Part]:
    """The abdomen; now and then an organ is missing, as after surgery."""
    tumours = int(rng.integers(1, 5)) if which.name == "PhantomLiverCT" else int(rng.uniform() < 0.25)
    kidney_tumour = rng.uniform() < (0.85 if which.name == "PhantomKidneyCT" else 0.08)
    ill = "left" if rng.uniform() < 0.5 else "right"
    missing = {
        organ
        for organ, chance in (
            ("gallbladder", 0.15),
            ("left kidney", 0.03),
            ("right kidney", 0.03),
            ("spleen", 0.03),
        )
        if rng.uniform() < chance
    }
    parts = abdomen.bowel_parts(wall, rng)
    parts += [*abdomen.bladder_parts(rng), *abdomen.pancreas_parts(wall, rng)]
    vessels = abdomen.vessel_parts(rng)
    spleen = abdomen.spleen_parts(wall, rng)
    parts += [*abdomen.stomach_parts(wall, rng), *(spleen if "spleen" not in missing else [])]
    parts += abdomen.liver_parts(wall, rng, tumours=tumours)
    for side in ("left", "right"):  # after liver and spleen: the kidneys leave their impression in both
        kidney = abdomen.kidney_parts(wall, rng, side, tumour=kidney_tumour and side == ill)
        parts += kidney if f"{side} kidney" not in missing else []
    parts += vessels  # after their branches to the kidneys, which would bite into them
    gallbladder = abdomen.gallbladder_parts(rng)
    return parts + (gallbladder if "gallbladder" not in missing else [])


def _head_scene(_: PhantomDataset, __: Modality, rng: np.random.Generator, ___: float) -> _Scene:
    stripped = bool(rng.uniform() < 0.3)
    parts = head_parts(rng, stripped=stripped)
    return _Scene(parts, scattered(rng, HEAD_T1, 0.04), "T1w MPRAGE")


def _heart_scene(_: PhantomDataset, __: Modality, rng: np.random.Generator, phase: float) -> _Scene:
    contraction = float(np.sin(np.pi * np.clip(phase, 0.0, 1.0) / 2.0) ** 2)
    contrast = scattered(rng, CINE, 0.07)
    parts = heart_parts(rng, HeartSize.draw(rng), contraction)
    return _Scene(parts, contrast, "cine bSSFP short axis", contrast["air"])
