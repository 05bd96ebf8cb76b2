"""Outcome of every DICOM series below a folder: handled (as what), or refused with which reason.

    python benchmarks/dicom_series.py [--data FOLDER] [--out TABLE.md]

The data are looked for in ``HERMES_TEST_DATA``, else in ``../shared/data``. A series is all images of one
SeriesInstanceUID in one folder; where copies of one image lie together (one file per transfer syntax) each
file is a series of its own. The table goes to standard output or to a file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from hermes.errors import BadImageError
from hermes.transforms.dicom import read_dicom, series_volumes

warnings.simplefilter("ignore")
LABELS = ("SEG", "RTSTRUCT")


def series_below(root: Path) -> dict[str, list[Path]]:
    """Name of a series -> its files."""
    groups: dict[tuple[Path, str], list[tuple[Path, str]]] = defaultdict(list)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, NotImplementedError):
            if file.suffix == ".dcm":
                groups[file.parent, file.name].append((file, ""))
            continue
        if str(header.get("Modality")) not in LABELS:
            uid = str(header.get("SeriesInstanceUID", file.name))
            groups[file.parent, uid].append((file, str(header.get("SOPInstanceUID"))))
    found = {}
    for (folder, _), files in groups.items():
        copies = Counter(uid for _, uid in files).most_common(1)[0][1] > 1
        name = folder.relative_to(root).as_posix()
        if copies or len(
            {file.parent for file, _ in files if file.parent.name in ("pydicom", "pydicom-data")}
        ):
            found.update({f"{name}/{file.name}": [file] for file, _ in files})
        else:
            found[name if name not in found else f"{name} ({files[0][0].name})"] = [file for file, _ in files]
    return found


def outcome(files: list[Path]) -> tuple[str, str]:
    """("handled" or "refused", what came out or the reason)."""
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            shutil.copy(file, Path(folder) / f"{number:04d}")
        try:
            volumes = series_volumes(Path(folder))
            usable = [volume for volume in volumes if volume.refusal is None]
            if len(volumes) == 1 or not usable:
                return "handled", _read(Path(folder), None)
            told = [f"{volume.title}: {_read(Path(folder), volume.id)}" for volume in usable]
            told += [f"{volume.title}: refused, {volume.refusal}" for volume in volumes if volume.refusal]
            return f"handled, {len(usable)} of {len(volumes)} volumes", "; ".join(told)
        except BadImageError as error:
            return "refused", str(error)


def _read(folder: Path, volume: str | None) -> str:
    array, grid, guess = read_dicom(folder, volume=volume)
    phases = max(len(v.phases) for v in series_volumes(folder))
    size = "x".join(str(n) for n in reversed(grid.shape))
    spacing = "x".join(f"{s:.3g}" for s in reversed(grid.spacing_mm))
    extra = "" if grid.is_orthogonal else ", sheared (gantry tilt)"
    extra += f", {phases} time points" if phases > 1 else ""
    kind = guess.modality.value if guess else "modality unknown"
    low, high = float(np.min(array)), float(np.max(array))
    return f"{size} at {spacing} mm, {grid.axis_codes}, {kind}, values {low:.4g} to {high:.4g}{extra}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("HERMES_TEST_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = ["| series | files | outcome | what came out, or why not |", "|---|---|---|---|"]
    counts: Counter[str] = Counter()
    for name, files in series_below(arguments.data).items():
        result, told = outcome(files)
        counts[result.split(",")[0]] += 1
        lines.append(f"| {name} | {len(files)} | {result} | {told} |")
    lines.append("")
    lines.append(", ".join(f"{count} {name}" for name, count in sorted(counts.items())) + ", 0 crashed")
    text = "\n".join(lines) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
