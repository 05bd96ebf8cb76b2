"""The volumes of a DICOM series: sorted by position, split where it holds several, refused where it would lie.

A series is what a scanner put under one SeriesInstanceUID; it may hold several volumes (echoes, b-values, two
acquisitions, stacks of several directions), time points of one volume, or no volume at all (a localiser).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hermes.errors import BadImageError
from hermes.geometry import Grid
from hermes.transforms.dicom_frames import TRAITS, Frame, frames_of

SAME_POSITION_MM = 1e-2
"""Slices nearer than this along the normal are at one position (several time points)."""
SPACING_TOLERANCE = 0.05
"""Largest deviation of a slice gap from the median gap, as a part of it: decimal strings are rounded."""
LATTICE_TOLERANCE = 0.1
"""Largest distance of a slice from its place in the even grid, as a part of the gap: small deviations of one
sign add up, and the middle of the volume would lie elsewhere than its grid says."""
SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines within one volume."""
LOCALISER_SLICES = 4
"""A series of several directions in which none has this many slices is a localiser."""


@dataclass(frozen=True, eq=False)
class SeriesVolume:
    """One volume of a series.

    Attributes:
        id: the SeriesInstanceUID, followed by ``~`` and eight characters where the series holds several
            volumes; follows from the attributes that tell them apart, so it survives a new download.
        title: what tells it from the others ("echo 4.6"); "" for the only one.
        phases: for each time point, its frames sorted along the normal.
        grid: where its voxels lie; None when refused.
        refusal: why it cannot be used, as a sentence; None when it can.
    """

    id: str
    title: str
    phases: tuple[tuple[Frame, ...], ...]
    grid: Grid | None
    refusal: str | None

    def usable_grid(self) -> Grid:
        """The grid.

        Raises:
            BadImageError: the volume cannot be used; the message says why.
        """
        if self.grid is None:
            raise BadImageError(self.refusal or "")
        return self.grid


def volumes_of(headers: Sequence[Any]) -> tuple[SeriesVolume, ...]:
    """The volumes of one series, usable or not.

    Args:
        headers: ``pydicom.Dataset`` of every instance, in any order; pixels are not needed.

    Raises:
        BadImageError: no instance, several series, colour images, frames without a position.
    """
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if len(series) != 1:
        msg = f"Expected one series in the DICOM folder, got {len(series)}. Give the folder of one series."
        raise BadImageError(msg)
    if any(_is_colour(header) for header in headers):
        msg = (
            "Expected one intensity per pixel, got colour images or colour-coded maps. Give the grey-valued "
            "original."
        )
        raise BadImageError(msg)
    uid = series.pop()
    groups = [
        (f"{shape}{', ' if shape and told else ''}{told}", group)
        for shape, alike in _split_shapes(frames_of(headers))
        for told, group in _split_traits(alike)
    ]
    localiser = _localiser(headers, [group for _, group in groups])
    return tuple(
        _volume(uid if len(groups) == 1 else f"{uid}~{_short(title)}", title, group, localiser)
        for title, group in sorted(groups, key=lambda item: item[0])
    )


def choose_volume(volumes: Sequence[SeriesVolume], volume: str | None = None) -> SeriesVolume:
    """The volume of the id ``volume``, or the only one.

    Raises:
        BadImageError: there is none of this id, several and no id, or it cannot be used.
    """
    if volume is not None:
        found = [item for item in volumes if item.id == volume]
        if not found:
            msg = f"Expected one of the volumes {[item.id for item in volumes]}, got {volume!r}."
            raise BadImageError(msg)
    else:
        found = list(volumes)
    refusals = {item.refusal for item in found}
    if len(refusals) == 1 and None not in refusals:
        raise BadImageError(refusals.pop() or "")
    if len(found) > 1:
        told = "; ".join(f"{item.title}: {item.refusal or item.id}" for item in found)
        msg = (
            "Expected one volume (one orientation, one image size and pixel spacing, one contrast) in the "
            f"series, got {len(found)} ({told}). Name one of them or split the series."
        )
        raise BadImageError(msg)
    found[0].usable_grid()
    return found[0]


def _is_colour(header: Any) -> bool:
    kind = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    coloured = str(header.get("PixelPresentation", "")) in ("COLOR", "MIXED", "TRUE_COLOR")
    return int(header.get("SamplesPerPixel", 1) or 1) != 1 or kind == "PALETTE COLOR" or coloured


def _short(title: str) -> str:
    return hashlib.sha256(title.encode()).hexdigest()[:8]


def _split_shapes(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """The frames of one size, pixel spacing and orientation together, with a text for each if several."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _alike(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    if len(groups) == 1:
        return [("", groups[0])]
    named = [(_shape_text(group[0]), group) for group in groups]
    texts = [text for text, _ in named]
    # Two groups may look alike when rounded for reading: then their order in space tells them apart.
    return [
        (text if texts.count(text) == 1 else f"{text} #{place + 1}", group)
        for place, (text, group) in enumerate(sorted(named, key=lambda item: tuple(item[1][0].axes.ravel())))
    ]


def _alike(first: Frame, frame: Frame) -> bool:
    return (
        frame.size == first.size
        and np.allclose(frame.pixel_mm, first.pixel_mm, rtol=1e-3)
        and bool(np.abs(frame.axes - first.axes).max() <= SAME_DIRECTION)
    )


def _shape_text(frame: Frame) -> str:
    normal = ",".join(f"{value + 0.0:.2f}" for value in np.round(frame.normal, 2))
    pixel = "x".join(f"{value:.3g}" for value in frame.pixel_mm)
    return f"slices along ({normal}), {frame.size[1]}x{frame.size[0]} pixels of {pixel} mm"


def _split_traits(frames: list[Frame], told: str = "") -> Iterator[tuple[str, list[Frame]]]:
    """Parts in which a position has one image, or images that only time tells apart."""
    positions = by_position(frames)
    for trait in TRAITS:
        if any(len({frame.traits[trait] for frame in group}) > 1 for group in positions):
            yield from _part(frames, {id(f): f"{trait} {f.traits[trait] or 'none'}" for f in frames}, told)
            return
    crowded = any(len(group) > 1 for group in positions)
    acquisitions = any(len({frame.acquisition for frame in group}) > 1 for group in positions)
    if crowded and acquisitions and not _is_temporal(positions):
        yield from _part(frames, {id(f): f"acquisition {f.acquisition}" for f in frames}, told)
        return
    yield told, frames


def _part(frames: Sequence[Frame], key: dict[int, str], told: str) -> Iterator[tuple[str, list[Frame]]]:
    for value in sorted(set(key.values())):
        part = [frame for frame in frames if key[id(frame)] == value]
        yield from _split_traits(part, f"{told}, {value}" if told else value)


def _is_temporal(positions: Sequence[Sequence[Frame]]) -> bool:
    """Whether an attribute of time tells the images of every position apart."""
    return all(len({frame.time for frame in group}) == len(group) for group in positions)


def by_position(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The frames along the normal, those of one position together and in order of time."""
    normal = frames[0].normal
    groups: list[list[Frame]] = []
    last = -np.inf
    for frame in sorted(frames, key=lambda frame: float(frame.position @ normal)):
        here = float(frame.position @ normal)
        if here - last > SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(frame)
        last = here
    return [sorted(group, key=lambda frame: (frame.time, frame.order)) for group in groups]


def _localiser(headers: Sequence[Any], groups: Sequence[Sequence[Frame]]) -> str | None:
    kinds = [[str(word).upper() for word in header.get("ImageType") or ()] for header in headers]
    if all("LOCALIZER" in kind or "SCOUT" in kind for kind in kinds):
        return "Expected a CT, MR or PET volume, got a localiser (scout view). Choose another series."
    directions: list[Frame] = []
    for group in groups:
        if all(np.abs(group[0].axes - other.axes).max() > SAME_DIRECTION for other in directions):
            directions.append(group[0])
    if len(directions) > 1 and all(len(by_position(group)) < LOCALISER_SLICES for group in groups):
        return (
            f"Expected one orientation in the series, got {len(directions)} with fewer than "
            f"{LOCALISER_SLICES} slices each (a localiser?). Choose another series."
        )
    return None


def _volume(uid: str, title: str, frames: Sequence[Frame], refusal: str | None) -> SeriesVolume:
    try:
        if refusal is not None:
            raise BadImageError(refusal)
        phases = _phases(by_position(frames))
        return SeriesVolume(uid, title, phases, _grid(phases[0]), None)
    except BadImageError as error:
        return SeriesVolume(uid, title, (), None, str(error))


def _phases(positions: Sequence[Sequence[Frame]]) -> tuple[tuple[Frame, ...], ...]:
    counts = {len(group) for group in positions}
    if len(counts) > 1:
        msg = (
            "Expected the same number of images at each slice position, got between "
            f"{min(counts)} and {max(counts)}. Files are missing or two acquisitions are mixed."
        )
        raise BadImageError(msg)
    if max(counts) > 1 and not _is_temporal(positions):
        msg = (
            f"Expected one image per slice position, got {max(counts)} that are not time points and that no "
            "echo time, b-value, image type or acquisition number tells apart. Split the series."
        )
        raise BadImageError(msg)
    return tuple(tuple(group[phase] for group in positions) for phase in range(max(counts)))


def _grid(stack: Sequence[Frame]) -> Grid:
    """The grid of evenly spaced slices; a gantry tilt becomes a sheared slice axis.

    Raises:
        BadImageError: the steps between neighbouring slices are not all the same.
    """
    first = stack[0]
    step = first.normal * first.thickness_mm
    if len(stack) > 1:
        positions = np.stack([frame.position for frame in stack])
        _check_even(positions, first)
        step = (positions[-1] - positions[0]) / (len(stack) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.pixel_mm[0]
    affine[:3, 1] = first.axes[1] * first.pixel_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return Grid((len(stack), *first.size), affine)


def _check_even(positions: Any, first: Frame) -> None:
    steps = np.diff(positions, axis=0)
    gaps = steps @ first.normal
    gap = float(np.median(gaps))
    off = np.abs(steps - np.median(steps, axis=0)).max(axis=1)
    limit = max(SPACING_TOLERANCE * gap, SAME_POSITION_MM)
    if (off > limit).any():
        missing = np.rint(gaps / gap) - 1
        whole = (np.abs(gaps - (missing + 1) * gap) <= limit) & (missing > 0)
        if len(gaps) > 2 and whole[off > limit].all():
            count = int(missing.sum())
            lost = "1 slice is missing" if count == 1 else f"{count} slices are missing"
            reason = f"{lost} (first after slice {int(np.argmax(whole)) + 1})."
            advice = "Send the series again."
        else:
            reason = "Slices are missing, or the spacing changes within the series."
            advice = "Send the series again, or resample it to one spacing first."
        msg = (
            f"Expected evenly spaced slices, got gaps from {gaps.min():.3g} to {gaps.max():.3g} mm "
            f"(the usual one is {gap:.3g} mm). {reason} {advice}"
        )
        raise BadImageError(msg)
    even = np.linspace(positions[0], positions[-1], len(positions))
    drift = float(np.abs(positions - even).max())
    if drift > max(LATTICE_TOLERANCE * gap, SAME_POSITION_MM):
        msg = (
            f"Expected evenly spaced slices, got a spacing that drifts from {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm: slices lie up to {drift:.3g} mm beside an even grid. Resample the series."
        )
        raise BadImageError(msg)
