"""Labels through DICOM SEG and back: wrong voxels over all orientations, and the codes that other readers show.

    python benchmarks/dicom_seg.py [--case PhantomAbdomenCT] [--size tiny] [--out FILE] [--large]

Part 1: a phantom case in all 48 orders and directions of its axes, straight, oblique, with a tilted gantry and
as one multi-frame object: SEG -> labels -> SEG -> labels, read by this project, by highdicom and by dcmqi.
Part 2: dcmqi's own SEG of the case, read by this project.
Part 3: one segment for every structure of the 71-task label space: the code, side and colour that highdicom
and dcmqi show for it, against the catalogue.
With ``--large`` nothing but this: CPU seconds and peak memory of writing and reading one SEG of a CT of
300 x 512 x 512 voxels with a box for every structure of the label space.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset

from hermes.dicom import SourceSeries, read_segmentations, write_segmentation
from hermes.dicom.lattice import same_voxels
from hermes.geometry import Grid
from hermes.labels import describe
from hermes.labels.space import published_label_space
from hermes.phantoms import make_case, make_series
from hermes.records import LabelMap

TILT_DEGREES = 18.0


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="PhantomAbdomenCT")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    if arguments.large:
        print(large())
        return
    case = make_case(arguments.case, 3, size=arguments.size, plain_axes=True)
    label_map = LabelMap(case.labels, Grid(case.labels.shape, case.affine), case.names)
    lines = [
        "| series | objects | voxels | wrong, SEG -> labels | wrong, again | wrong, highdicom | wrong, dcmqi |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, maps, enhanced in kinds(label_map):
        rows = [round_trip(item, enhanced=enhanced) for item in maps]
        sums = np.sum(rows, axis=0)
        cells = " | ".join("cannot" if np.isnan(value) else str(int(value)) for value in sums)
        lines.append(f"| {title} | {len(rows)} | {cells} |")
    lines += ["", f"dcmqi's SEG read here: {foreign(label_map)} wrong voxels of {label_map.array.size}", ""]
    text = "\n".join(lines + codes()) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


def kinds(label_map: LabelMap) -> Iterator[tuple[str, list[LabelMap], bool]]:
    """Title, label maps and whether the series is one multi-frame object."""
    turned = list(orientations(label_map))
    oblique = [on(item, rotated(item.grid.affine)) for item in turned]
    yield "48 orientations", turned, False
    yield "48 orientations, oblique", oblique, False
    yield "48 orientations, oblique, multi-frame", oblique, True
    yield "48 orientations, gantry tilt", [on(item, tilted(item.grid.affine)) for item in turned], False
    for slices in (1, 2):
        planes = [
            on(item, item.grid.affine, item.array[len(item.array) // 2 :][:slices]) for item in oblique[::7]
        ]
        yield f"{slices} slice{'s' * (slices > 1)}", planes, False


def on(label_map: LabelMap, affine: np.ndarray, array: np.ndarray | None = None) -> LabelMap:
    """The values of a label map on another affine."""
    values = label_map.array if array is None else array
    return LabelMap(values, Grid(values.shape, affine), label_map.names)


def orientations(label_map: LabelMap) -> Iterator[LabelMap]:
    """The same voxels with the axes in all 48 orders and directions."""
    grid = label_map.grid
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turned = label_map.array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            affine, corner = np.eye(4), grid.affine[:3, 3].copy()
            for place, (axis, sign) in enumerate(zip(order, signs, strict=True)):
                column = grid.affine[:3, 2 - axis]
                affine[:3, 2 - place] = sign * column
                corner += column * (label_map.array.shape[axis] - 1) * (sign < 0)
            affine[:3, 3] = corner
            yield LabelMap(np.ascontiguousarray(turned), Grid(turned.shape, affine), label_map.names)


def rotated(affine: np.ndarray) -> np.ndarray:
    """Turned by angles that are on no axis."""
    turn = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
    result = affine.copy()
    result[:3] = turn @ affine[:3]
    return result


def tilted(affine: np.ndarray) -> np.ndarray:
    """Slices that move along their columns, as with a tilted gantry."""
    result = affine.copy()
    along = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    result[:3, 2] += along * np.tan(np.radians(TILT_DEGREES)) * np.linalg.norm(affine[:3, 2])
    return result


def stored(dataset: Dataset) -> Dataset:
    """The object as another program reads it."""
    file = io.BytesIO()
    dataset.save_as(file, write_like_original=False)
    file.seek(0)
    return pydicom.dcmread(file)


def written(label_map: LabelMap, series: list[Dataset]) -> Dataset:
    """A stored SEG."""
    return stored(
        write_segmentation(label_map, series, algorithm_type="AUTOMATIC", model_version="benchmark")
    )


def round_trip(label_map: LabelMap, *, enhanced: bool) -> tuple[int, int, int, int, int]:
    """Voxels; wrong ones after one and after two round trips, in highdicom's and in dcmqi's reading."""
    series = make_series(np.zeros(label_map.grid.shape), label_map.grid.affine, enhanced=enhanced)[::-1]
    values = {name: value for value, name in label_map.names.items()}
    first = written(label_map, series)
    once = read_segmentations([first], series).label_map(values)
    twice = read_segmentations([written(once, series)], series).label_map(values)
    truth = same_voxels(label_map.array, label_map.grid, once.grid)
    return (
        truth.size,
        int((once.array != truth).sum()),
        int((twice.array != truth).sum()),
        by_highdicom(first, series, truth),
        by_dcmqi(first, label_map),
    )


def by_highdicom(dataset: Dataset, series: list[Dataset], truth: np.ndarray) -> int:
    """Wrong voxels in highdicom's reading by source image."""
    theirs = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    source = SourceSeries.of(series)
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if source.frames[0].frame is None:
        uids = [reference.sop_instance_uid for reference in source.references]
        pixels = theirs.get_pixels_by_source_instance(source_sop_instance_uids=uids, **options)
    else:
        pixels = theirs.get_pixels_by_source_frame(
            source_sop_instance_uid=source.references[0].sop_instance_uid,
            source_frame_numbers=[reference.frame_number for reference in source.references],
            **options,
        )
    return int((pixels != np.searchsorted(np.unique([0, *np.unique(truth)]), truth)).sum())


def by_dcmqi(dataset: Dataset, label_map: LabelMap) -> int | float:
    """Wrong voxels in dcmqi's reading, in space; slices that it leaves out are background."""
    with tempfile.TemporaryDirectory() as folder:
        dataset.save_as(Path(folder) / "seg.dcm")
        if not label_map.grid.is_orthogonal or dcmqi(
            "segimage2itkimage", "--inputDICOM", f"{folder}/seg.dcm", *out(folder)
        ):
            return float("nan")  # dcmqi has no sheared images
        image = SimpleITK.ReadImage(f"{folder}/x-1.nrrd")
    grid = Grid.from_simpleitk(image)
    theirs = SimpleITK.GetArrayFromImage(image)
    numbers = np.searchsorted(np.unique([0, *np.unique(label_map.array)]), label_map.array)
    found = np.zeros_like(numbers)
    index = np.argwhere(theirs)
    where = np.rint(label_map.grid.to_index(grid.to_mm(index[:, ::-1]))).astype(int)[:, ::-1]
    found[tuple(where.T)] = theirs[tuple(index.T)]
    return int((found != numbers).sum())


def out(folder: str) -> list[str]:
    """Where dcmqi writes."""
    return ["--outputDirectory", folder, "-t", "nrrd", "-p", "x", "--mergeSegments"]


def dcmqi(name: str, *arguments: str) -> int:
    """Runs a program of dcmqi; its exit status."""
    program = shutil.which(name) or str(Path(sys.executable).parent / name)
    return subprocess.run([program, *arguments], capture_output=True, check=False).returncode


def foreign(label_map: LabelMap) -> int:
    """Wrong voxels when dcmqi writes the SEG and this project reads it."""
    series = make_series(np.zeros(label_map.grid.shape), label_map.grid.affine)
    code = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    attributes = [
        {
            "labelID": value,
            "SegmentLabel": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": code,
            "SegmentedPropertyTypeCodeSequence": code,
        }
        for value, name in label_map.names.items()
    ]
    meta = {
        "ContentCreatorName": "x",
        "SeriesNumber": "5",
        "InstanceNumber": "1",
        "segmentAttributes": [attributes],
    }
    with tempfile.TemporaryDirectory() as folder:
        image = SimpleITK.GetImageFromArray(label_map.array)
        image.SetOrigin(label_map.grid.origin_mm)
        image.SetSpacing(label_map.grid.spacing_mm[::-1])
        image.SetDirection(label_map.grid.direction.ravel().tolist())
        SimpleITK.WriteImage(image, f"{folder}/labels.nrrd")
        Path(folder, "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        files = []
        for number, header in enumerate(series):
            files.append(f"{folder}/{number}.dcm")
            header.save_as(files[-1], write_like_original=False)
        options = ["--inputImageList", f"{folder}/labels.nrrd", "--inputDICOMList", ",".join(files)]
        options += [
            "--inputMetadata",
            f"{folder}/meta.json",
            "--outputDICOM",
            f"{folder}/seg.dcm",
            "--skip",
            "1",
        ]
        dcmqi("itkimage2segimage", *options)
        back = read_segmentations([pydicom.dcmread(f"{folder}/seg.dcm")], series)
    values = {name: value for value, name in label_map.names.items()}
    return int((back.label_map(values).array != label_map.array).sum())


def codes() -> list[str]:
    """What others show for every structure of the published label space."""
    names = list(dict.fromkeys(task.structure for task in published_label_space().tasks))
    array = np.zeros((3, 16, 16), np.uint8)
    array.reshape(-1)[: len(names)] = np.arange(1, len(names) + 1)
    series = make_series(np.zeros(array.shape), np.diag([1.0, 1.0, 2.0, 1.0]))
    label_map = LabelMap(array, SourceSeries.of(series).grid, dict(enumerate(names, 1)))
    dataset = written(label_map, series)
    theirs = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    with tempfile.TemporaryDirectory() as folder:
        dataset.save_as(Path(folder) / "seg.dcm")
        dcmqi("segimage2itkimage", "--inputDICOM", f"{folder}/seg.dcm", *out(folder))
        meta = json.loads(Path(folder, "x-meta.json").read_text(encoding="utf-8"))
    shown = {entry["labelID"]: entry for group in meta["segmentAttributes"] for entry in group}
    lines = [
        "| structure | code | side | region | highdicom | dcmqi | colour apart (dcmqi) | read back as |",
        "|" + "---|" * 8,
    ]
    for segment in dataset.SegmentSequence:
        for keyword in ("SegmentLabel",):
            segment[keyword].value = f"Segment {segment.SegmentNumber}"  # so that only the code names it
    back = {s.number: s.name for s in read_segmentations([dataset], series).segments}
    wrong = 0
    for number, name in enumerate(names, 1):
        structure = describe(name)
        expected = (structure.code.value, structure.laterality.meaning if structure.laterality else "")
        kind = theirs.get_segment_description(number).segmented_property_type
        side = [str(c.CodeMeaning) for c in kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()]
        first = (kind.value, "".join(side))
        entry = shown[number]
        modifier = entry.get("SegmentedPropertyTypeModifierCodeSequence", {}).get("CodeMeaning", "")
        second = (entry["SegmentedPropertyTypeCodeSequence"]["CodeValue"], modifier)
        colour = int(np.abs(np.subtract(entry["recommendedDisplayRGBValue"], structure.colour)).max())
        wrong += (first != expected) + (second != expected) + (colour > 1)
        region = structure.region.meaning if structure.region else ""
        verdicts = " | ".join("same" if seen == expected else f"{seen}" for seen in (first, second))
        lines.append(
            f"| {name} | {structure.code.value} {structure.code.meaning} | {expected[1]} | {region} | {verdicts} "
            f"| {colour} | {back.get(number, 'united with another')} |"
        )
    return [*lines, "", f"{len(names)} structures, {wrong} differences"]


def large() -> str:
    """What one large SEG costs."""
    names = list(dict.fromkeys(task.structure for task in published_label_space().tasks))
    random = np.random.default_rng(0)
    array = np.zeros((300, 512, 512), np.uint8)
    for value in range(1, len(names) + 1):
        z, y, x = random.integers(0, (200, 400, 400))
        depth, height, width = random.integers(30, 100, 3)
        array[z : z + depth, y : y + height, x : x + width] = value
    series = make_series(np.zeros((len(array), 1, 1)), np.diag([0.8, 0.8, 1.0, 1.0]))
    for header in series:
        header.Rows, header.Columns = array.shape[1:]
        del header.PixelData
    source = SourceSeries.of(series)
    label_map = LabelMap(array, source.grid, dict(enumerate(names, 1)))
    before = time.process_time()
    dataset = write_segmentation(label_map, source, algorithm_type="AUTOMATIC", model_version="benchmark")
    between = time.process_time()
    back = read_segmentations([dataset], source)
    after = time.process_time()
    wrong = int(
        (back.label_map({name: value for value, name in label_map.names.items()}).array != array).sum()
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return (
        f"{len(back.segments)} segments, {dataset.NumberOfFrames} frames, {len(dataset.PixelData) / 1e6:.0f} MB: written in "
        f"{between - before:.1f} CPU s, read in {after - between:.1f} CPU s, peak {peak:.2f} GB, {wrong} wrong voxels"
    )


if __name__ == "__main__":
    main()
