"""``hermes segment``: many images on the command line, each to a label map on its own grid and a JSON report."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hermes import __version__
from hermes.checkpoint import Manifest, load_checkpoint
from hermes.config import Settings
from hermes.device import choose_device, choose_precision
from hermes.errors import BadRequestError, HermesError, NotFoundError
from hermes.inference.predictor import Predictor
from hermes.inference.region import Region
from hermes.labels.catalogue import describe
from hermes.labels.space import LabelSpace
from hermes.records import Prediction
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.reading import ITK_SUFFIXES, NIBABEL_SUFFIXES, read_label_map
from hermes.transforms.writing import LABEL_SUFFIXES, write_label_map, write_number_map
from hermes.types import Modality

IMAGE_SUFFIXES = NIBABEL_SUFFIXES + ITK_SUFFIXES
DEFAULT_SUFFIX = ".nii.gz"
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (windows done, windows in all)."""


@dataclass(frozen=True)
class Job:
    """One image and the files that answer it."""

    image: Path
    label_map: Path

    @property
    def report(self) -> Path:
        """The JSON report beside the label map."""
        return self.label_map.with_name(f"{stem(self.label_map)}.json")

    @property
    def uncertainty_map(self) -> Path:
        """The uncertainty map beside the label map, of the same format."""
        name, own = self.label_map.name, stem(self.label_map)
        return self.label_map.with_name(f"{own}_uncertainty{name[len(own) :]}")


@dataclass(frozen=True)
class Wish:
    """What is asked of every image; None leaves the choice to Hermes.

    Attributes:
        structures: names, protocols, groups.
        modality: of the images.
        frame: time point of 4D images.
        region: only this part of the patient; the rest is background.
        uncertainty_map: whether to write one beside each label map.
    """

    structures: tuple[str, ...] | None = None
    modality: Modality | None = None
    frame: int | None = None
    region: Region | None = None
    uncertainty_map: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the content of its report, or the reason why there is none."""

    job: Job
    report: Mapping[str, Any] | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The report, or the image with the reason of its failure."""
        if self.report is not None:
            return dict(self.report)
        return {"image": str(self.job.image), "error": self.reason}


def stem(path: Path) -> str:
    """The name of a file or folder without the suffix of its format (``.nii.gz`` is one)."""
    name = path.name or path.resolve().name
    suffix = next(
        (s for s in IMAGE_SUFFIXES if name.lower().endswith(s)), "" if path.is_dir() else path.suffix
    )
    return name[: -len(suffix)] if suffix else name


def find_images(sources: Sequence[Path]) -> list[Path]:
    """The images that the sources name, each once.

    A folder that holds image files stands for them, in the order of their names; any other is one DICOM series.
    """
    images: dict[Path, Path] = {}
    for source in sources:
        inside = sorted(source.iterdir()) if source.is_dir() else []
        files = [f for f in inside if f.is_file() and f.name.lower().endswith(IMAGE_SUFFIXES)]
        for image in [f for f in files if not f.name.startswith(".")] or [source]:
            images.setdefault(image.resolve(), image)
    return list(images.values())


def plan(sources: Sequence[Path], out: Path) -> list[Job]:
    """The jobs for the images in ``sources``.

    Args:
        sources: image files, DICOM folders, folders of image files.
        out: a file for one image; a folder for several, or where it has no suffix of a label file. In a
            folder, images of one name carry the name of their own folder in front.

    Raises:
        BadRequestError: one file for several images, two images with one result, or a result that would
            replace an image.
    """
    images = find_images(sources)
    is_file = out.name.lower().endswith(LABEL_SUFFIXES) and not out.is_dir()
    if is_file and len(images) > 1:
        msg = f"Expected a folder to write {len(images)} label maps to, got the file name {str(out)!r}."
        raise BadRequestError(msg)
    jobs = [Job(images[0], out)] if is_file else _jobs_in(out, images)
    targets = Counter(job.label_map for job in jobs)
    twice = sorted(target.name for target, count in targets.items() if count > 1)
    if twice:
        clash = ", ".join(repr(str(job.image)) for job in jobs if job.label_map.name == twice[0])
        msg = (
            f"Expected a result for each image, but {clash} would all become {twice[0]!r}. "
            "Rename one, or segment them into different folders."
        )
        raise BadRequestError(msg)
    sources_found = {image.resolve() for image in images}
    for job in jobs:
        if sources_found & {job.label_map.resolve(), job.report.resolve(), job.uncertainty_map.resolve()}:
            msg = f"The result {str(job.label_map)!r} would replace an image. Choose another folder or name."
            raise BadRequestError(msg)
    return jobs


def _jobs_in(folder: Path, images: Sequence[Path]) -> list[Job]:
    if folder.exists() and not folder.is_dir():
        known = ", ".join(LABEL_SUFFIXES)
        msg = f"Expected a folder, or a file name ending in one of {known}, got the existing file {str(folder)!r}."
        raise BadRequestError(msg)
    return [
        Job(image, folder / f"{name}{DEFAULT_SUFFIX}")
        for image, name in zip(images, _distinct_names(images), strict=True)
    ]


def _distinct_names(images: Sequence[Path]) -> list[str]:
    """A name per image: its stem, after as many of its folders' names as tell it from the others."""
    parts = [(*image.resolve().parent.parts[1:], stem(image)) for image in images]
    deepest = max(len(own) for own in parts)
    names = [own[-1] for own in parts]
    for levels in range(2, deepest + 1):
        often = Counter(names)
        names = [
            "_".join(own[-levels:]) if often[name] > 1 else name
            for own, name in zip(parts, names, strict=True)
        ]
    return names


def load_predictor(settings: Settings, default_model: Path) -> Predictor:
    """The predictor that the settings ask for.

    Args:
        settings: ``model``, ``device``, ``precision``, ``spacing_mm``, ``window_overlap`` and the memory limit.
        default_model: taken where the settings name none.

    Raises:
        NotFoundError: there is no such model directory.
        CheckpointError: it cannot be read.
        BadRequestError: this machine has no such device.
    """
    directory = settings.model or default_model
    if not directory.is_dir():
        asked = f"at {str(directory)!r}" if settings.model else "of the installation (the starter)"
        msg = (
            f"Expected a model directory {asked}, there is none. Name one with --model DIR; `hermes import` makes "
            "one from published weights, `make starter` trains a demonstration."
        )
        raise NotFoundError(msg)
    device = choose_device(settings.device)
    net, manifest = load_checkpoint(directory, device)
    return Predictor(
        net,
        manifest,
        device=device,
        preparation=_preparation(manifest, settings.spacing_mm),
        version=manifest.version or directory.resolve().name,
        overlap=settings.window_overlap,
        memory_bytes=int(settings.inference_memory_gib * 2**30),
        precision=choose_precision(settings.precision, device),
    )


def _preparation(manifest: Manifest, spacing_mm: float | None) -> PreparationSpec:
    if spacing_mm is None:
        return manifest.preparation
    return PreparationSpec.from_json({**manifest.preparation.to_json(), "spacing_mm": spacing_mm})


def region_near(label_map: Path, margin_mm: float) -> Region:
    """The box around everything that a label map draws.

    Raises:
        NotFoundError: there is no such file.
        BadLabelError: it cannot be read.
        BadRequestError: it draws nothing, or the margin is negative.
    """
    if not label_map.is_file():
        msg = f"Expected a label map as --near, there is no file {str(label_map)!r}."
        raise NotFoundError(msg)
    if not margin_mm >= 0:
        msg = f"Expected --margin to be 0 mm or more, got {margin_mm:g}."
        raise BadRequestError(msg)
    drawn = read_label_map(label_map)
    return Region.around(drawn, np.unique(drawn.array[drawn.array > 0]).tolist(), margin_mm)


def check_structures(manifest: Manifest, structures: Sequence[str] | None) -> None:
    """Nothing, if the model can be asked for these structures and groups.

    Raises:
        UnknownStructureError: a name that it has not learned, with the nearest ones.
    """
    rows = sorted(manifest.learned_rows)
    LabelSpace(tuple(manifest.label_space.tasks[row] for row in rows)).select(structures)


def segment_images(
    predictor: Predictor,
    jobs: Sequence[Job],
    wish: Wish,
    on_start: Callable[[Job], Progress] | None = None,
) -> Iterator[Outcome]:
    """Segments the images one after the other; one that cannot be segmented does not stop the others.

    Args:
        predictor: of the model.
        jobs: of :func:`plan`.
        wish: for all images.
        on_start: called before each image; what it returns is told the progress of that image.
    """
    for job in jobs:
        try:
            prediction = predictor.predict(
                job.image,
                wish.structures,
                modality=wish.modality,
                frame=wish.frame,
                region=wish.region,
                uncertainty_map=wish.uncertainty_map,
                on_progress=on_start(job) if on_start else None,
            )
            write_label_map(prediction.label_map, job.label_map)
            if prediction.uncertainty_map is not None:
                grid = prediction.label_map.grid
                write_number_map(prediction.uncertainty_map, grid, job.uncertainty_map)
            report = report_of(job, prediction, predictor)
            _write_report(job.report, report)
        except HermesError as error:
            yield Outcome(job, reason=str(error))
        except OSError as error:
            yield Outcome(job, reason=f"Reading or writing failed: {error.strerror or error}.")
        except MemoryError:
            yield Outcome(job, reason="The image needs more memory than there is. Try a larger --spacing.")
        else:
            yield Outcome(job, report)


def report_of(job: Job, prediction: Prediction, predictor: Predictor) -> dict[str, Any]:
    """The report of one image as a JSON object."""
    return {
        "image": str(job.image),
        "label_map": str(job.label_map),
        "modality": prediction.modality.value if prediction.modality else None,
        "modality_source": prediction.modality_source,
        "modality_confidence": round(prediction.modality_confidence, 3),
        "structures": [
            {
                "name": result.structure,
                "value": result.value,
                "task": result.task,
                "presence_probability": round(result.presence_probability, 4),
                "voxels": result.voxel_count,
                "volume_ml": round(result.volume_ml, 3),
                "uncertainty": round(result.uncertainty, 4),
                "colour": list(describe(result.task.partition("@")[0]).colour),
            }
            for result in prediction.structures
        ],
        "uncertainty": round(prediction.uncertainty, 4),
        "model_version": prediction.model_version,
        "model_sha256": predictor.manifest.sha256,
        "spacing_mm": list(predictor.preparation.spacing_zyx_mm),
        "device": str(predictor.device),
        "windows": prediction.windows,
        "windows_skipped": prediction.windows_skipped,
        "timings_s": {stage: round(seconds, 3) for stage, seconds in prediction.timings_s.items()},
        "hermes_version": __version__,
    }


def _write_report(path: Path, report: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
