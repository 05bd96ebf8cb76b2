"""Pictures of the phantoms for the documentation: slices, and the same slices with the drawn contours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hermes.phantoms.cases import PhantomCase, make_case
from hermes.types import Modality

PICTURES = (
    ("ct", "PhantomAbdomenCT", 102),
    ("ct-liver", "PhantomLiverCT", 300),
    ("ct-thorax", "PhantomThoraxCT", 300),
    ("pet", "PhantomPET", 4),
    ("t1", "PhantomAbdomenMR", 301),
    ("t2", "PhantomAbdomenMR", 300),
    ("brain", "PhantomBrainT1", 302),
    ("cine", "PhantomCineMR", 300),
)
"""(file name part, dataset, seed) of each picture."""

_COLOURS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4f8ef7", "#f58231", "#d14bf0", "#46f0f0", "#f032e6", "#bcf60c",
)  # fmt: skip


def _window(case: PhantomCase) -> tuple[float, float]:
    """Grey levels as a reader would set them."""
    if case.dataset == "PhantomThoraxCT":
        return -1000.0, 400.0
    if case.modality is Modality.CT:
        return -160.0, 250.0
    if case.modality is Modality.PET:
        return 0.0, 8.0
    return 0.0, float(np.percentile(case.image, 99.5))


def _planes(case: PhantomCase) -> list[tuple[NDArray[np.float32], NDArray[np.uint8], float]]:
    """Image, labels and height of a pixel over its width: two axial slices and a coronal one, head up."""
    spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
    weight = np.bincount(np.nonzero(case.labels)[0], minlength=len(case.labels)).cumsum()
    middle = [int(np.searchsorted(weight, share * weight[-1])) for share in (0.3, 0.6)]
    planes = [(case.image[k], case.labels[k], float(spacing[1] / spacing[0])) for k in middle]
    row = int(np.median(np.nonzero(case.labels)[1]))
    return [*planes, (case.image[::-1, row], case.labels[::-1, row], float(spacing[2] / spacing[0]))]


def draw_case(case: PhantomCase, path: Path) -> None:
    """Writes a PNG: three planes on the left, the same with the contours of the truth on the right.

    Args:
        case: made with ``plain_axes``, so that the left of the picture is the patient's right.
        path: of the PNG.
    """
    figure = Figure(figsize=(8.4, 9.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    low, high = _window(case)
    colours = "gray_r" if case.modality is Modality.PET else "gray"
    for row, (image, labels, aspect) in enumerate(_planes(case)):
        for column in range(2):
            axis = axes[row, column]
            axis.imshow(image, cmap=colours, vmin=low, vmax=high, aspect=aspect, interpolation="bicubic")
            axis.set_axis_off()
        for value in case.names:
            if (labels == value).any():
                colour = _COLOURS[(value - 1) % len(_COLOURS)]
                axes[row, 1].contour(labels == value, [0.5], colors=[colour], linewidths=1.3)
    figure.suptitle(f"{case.name}: {case.series}", color="white", fontsize=11)
    handles = [
        Line2D([], [], color=_COLOURS[(v - 1) % len(_COLOURS)], label=name)
        for v, name in case.names.items()
        if name in case.present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, labelcolor="white", facecolor="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def write_pictures(folder: Path) -> list[Path]:
    """Draws every picture of the documentation as ``folder/phantom-*.png``."""
    paths = []
    for part, dataset, seed in PICTURES:
        paths.append(folder / f"phantom-{part}.png")
        draw_case(make_case(dataset, seed, plain_axes=True), paths[-1])
    return paths
