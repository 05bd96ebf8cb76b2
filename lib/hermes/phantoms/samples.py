"""The sample data of the repository: which cases, where they lie, and the manifest that fixes their bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hermes.phantoms.cases import make_case
from hermes.phantoms.dicom import write_dicom_series
from hermes.phantoms.nifti import write_image, write_labels

CAMPAIGN_DATASET = "PhantomAbdomenCT"
CAMPAIGN_SEEDS = tuple(range(100, 124))
"""Images of the demonstration campaign; no other data is made from these seeds."""
HELDOUT_SEEDS = tuple(range(200, 208))
"""Cases that nobody trains on."""
FIRST_TRAINING_SEED = 1000
"""Cases made for training start here, so that they never meet the campaign or the held-out cases."""

OTHER_CASES = (
    ("PhantomLiverCT", 300), ("PhantomKidneyCT", 300), ("PhantomAbdomenMR", 300), ("PhantomAbdomenMR", 301),
    ("PhantomThoraxCT", 300), ("PhantomBrainT1", 302), ("PhantomCineMR", 300), ("PhantomPET", 300),
)  # fmt: skip
"""One or two of each other dataset, both MR weightings."""

DICOM_CASES = (
    ("PhantomAbdomenCT", 400), ("PhantomPET", 400), ("PhantomAbdomenMR", 400), ("PhantomAbdomenMR", 402),
    ("PhantomCineMR", 400),
)  # fmt: skip
"""One series per modality."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Sample:
    """One file or series of the sample data.

    Attributes:
        dataset: name of the dataset.
        seed: of the case.
        image: where the image goes, relative to the sample folder (a folder for DICOM).
        labels: where the truth goes.
    """

    dataset: str
    seed: int
    image: str
    labels: str

    @property
    def is_dicom(self) -> bool:
        """Whether the image is a folder of DICOM files."""
        return not self.image.endswith(".nii.gz")


def samples() -> tuple[Sample, ...]:
    """Everything that the sample folder holds, in the order in which it is written."""
    groups: list[tuple[str, str, str, int]] = []
    groups += [("campaign", "truth", CAMPAIGN_DATASET, seed) for seed in CAMPAIGN_SEEDS]
    groups += [("heldout/images", "heldout/labels", CAMPAIGN_DATASET, seed) for seed in HELDOUT_SEEDS]
    groups += [("modalities/images", "modalities/labels", name, seed) for name, seed in OTHER_CASES]
    result = [
        Sample(n, s, f"{images}/{n}_{s:04d}.nii.gz", f"{labels}/{n}_{s:04d}.nii.gz")
        for images, labels, n, s in groups
    ]
    result += [
        Sample(n, s, f"dicom/series/{n}_{s:04d}", f"dicom/labels/{n}_{s:04d}.nii.gz") for n, s in DICOM_CASES
    ]
    return tuple(result)


def write_sample(sample: Sample, folder: Path) -> list[Path]:
    """Generates one sample below ``folder``; returns the files written."""
    case = make_case(sample.dataset, sample.seed, plain_axes=sample.is_dicom)
    labels = folder / sample.labels
    if sample.is_dicom:
        files = write_dicom_series(case, folder / sample.image)
    else:
        files = [folder / sample.image]
        write_image(case, files[0])
    write_labels(case, labels)
    return [*files, labels, labels.with_name(labels.name.removesuffix(".nii.gz") + ".json")]


def content_hash(path: Path) -> str:
    """SHA-256 of a file, of a ``.gz`` of the decompressed bytes, since zlib versions pack differently."""
    content = path.read_bytes()
    return hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content).hexdigest()


def write_samples(folder: Path, *, on_sample: Callable[[int, int], None] | None = None) -> Path:
    """Generates all samples below ``folder`` and the manifest; returns the manifest's path.

    Args:
        folder: existing files of the same names are overwritten, others are left alone.
        on_sample: told (samples written, samples in all) after each one.
    """
    files: list[Path] = []
    everything = samples()
    for done, sample in enumerate(everything, start=1):
        files += write_sample(sample, folder)
        if on_sample is not None:
            on_sample(done, len(everything))
    entries = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "content_sha256": content_hash(path),
        }
        for path in sorted(files)
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"licence": "Apache-2.0", "files": entries}, indent=1) + "\n")
    return manifest


def differences(folder: Path) -> Iterator[str]:
    """What in ``folder`` is not as its manifest says: one sentence per missing or changed file."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing."
        elif content_hash(path) != entry["content_sha256"]:
            yield f"{name} is not what the manifest says."
