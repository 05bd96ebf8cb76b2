"""The datastore of a campaign whose images lie in a PACS.

Longer than a module here should be: MONAI Label's interface has thirty methods, and this is the one door to them.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from hermes.adapters.annotators import usable_name
from hermes.adapters.dicomweb.label_files import read_label_file, read_label_object
from hermes.adapters.dicomweb.labels_in import image_of
from hermes.adapters.dicomweb.listing import Listing, PacsIndex
from hermes.adapters.dicomweb.notes import Notes, Predictions
from hermes.adapters.dicomweb.plans import is_from
from hermes.adapters.dicomweb.series import Image, SeriesFiles, images_of
from hermes.adapters.dicomweb.uploading import about_label, new_uid
from hermes.adapters.errors import answers_errors
from hermes.adapters.images import LONGEST_SHOWN
from hermes.adapters.requests import check_json
from hermes.adapters.submitting import RESERVED_PARAMS, Intake, checked_name, label_info, require_same_grid
from hermes.campaign.campaign import Campaign
from hermes.campaign.records import FINAL, LabelRecord
from hermes.campaign.uploads import Uploads
from hermes.errors import BadRequestError, ConflictError, NotFoundError
from hermes.geometry import Grid
from hermes.offered import OfferedLabels
from hermes.records import LabelMap
from hermes.submission import PRESENT, Submission
from hermes.transforms.reading import read_label_map

logger = logging.getLogger(__name__)

LABEL_DELETED = "Its label was deleted in this campaign. Store it again, changed, to have it back."
IDLE_S = 15.0
"""How old the lists may be while nobody asks but the server itself."""
FIRST_LOOK_S = 2.0
"""How long an offer waits for a first image that was looked at."""
_POLL_S = 0.05
_FINAL = DefaultLabelTag.FINAL.value
_KEPT_BY_THE_STORE = frozenset({"name", "path", "ts", "annotated", "version", "source"})


@dataclass(frozen=True)
class Behind:
    """What lies behind the datastore.

    Attributes:
        index: what the PACS holds.
        files: its series on disk.
        campaign: the database.
        intake: takes submitted labels in.
        directory: of the campaign.
        upload_predictions: whether predictions are stored in the PACS, too.
    """

    index: PacsIndex
    files: SeriesFiles
    campaign: Campaign
    intake: Intake
    directory: Path
    upload_predictions: bool = False

    @property
    def uploads(self) -> Uploads:
        """The queue to the PACS."""
        return self.campaign.uploads


@dataclass(frozen=True)
class Stored:
    """A label object of a viewer that was taken.

    Attributes:
        image_id: whose label it is.
        covered: what of overlapping structures the label does not hold, a phrase each.
    """

    image_id: str
    covered: tuple[str, ...] = ()


class HermesDicomWebDatastore(Datastore):  # type: ignore[misc]
    """Images in a PACS, labels in the campaign's archive and, as DICOM SEG, in the PACS.

    A submitted label (tag ``final``) is checked, archived, recorded, and queued for the PACS before the answer
    goes out; nothing of that needs the PACS to be up. Other tags are predictions, kept by model version. The
    id of a label is the id of its image.
    """

    def __init__(self, behind: Behind, *, url: str) -> None:
        """Open the campaign's view of the PACS at ``url``."""
        self._behind, self._url = behind, url
        kept = behind.directory / "pacs"
        self._predictions, self._notes = Predictions(kept / "predictions"), Notes(kept / "notes")
        self._offers = OfferedLabels(behind.directory / "offered")
        self._saving, self._noting = threading.Lock(), threading.Lock()
        self._name, self._description = "Hermes", "Images on a DICOMweb server"
        self._being_stored: list[frozenset[str]] = []
        self.queued: Callable[[], None] = lambda: None
        """Called when an upload was queued."""

    # ------------------------------------------------------------------ images

    def images(self, listing: Listing | None = None) -> dict[str, Image]:
        """The images by id, those of one series together and the main one first."""
        listing = listing or self._behind.index.current()
        files = self._behind.files
        found = (images_of(series, files.inspected(series)) for series in listing.series.values())
        return {image.id: image for several in found for image in several}

    def require_image(self, image_id: str) -> Image:
        """The image of this id; one that is not listed is looked for in the PACS once more.

        Raises:
            NotFoundError: there is none.
        """
        index = self._behind.index
        image = self.images(index.listing).get(image_id)  # what was there a moment ago need not be looked for
        if image is None:
            index.expire()
            image = self.images().get(image_id)
        if image is None:
            count, error = len(self.images(index.listing)), index.error
            trouble = f" {error}" if error else ""
            msg = (
                f"Expected the SeriesInstanceUID of one of the {count} images here, got {image_id[:LONGEST_SHOWN]!r}. "
                f"GET /datastore/?output=all lists them.{trouble}"
            )
            raise NotFoundError(msg)
        return image

    def list_images(self) -> list[str]:
        """Ids of all images."""
        return list(self.images())

    def offerable_images(self) -> list[str]:
        """Ids of the images whose series was looked at as it is now, and has something usable: nobody gets another.

        Where there is none yet, as after the very first start, the first looks are waited for a little.
        """
        ends = time.monotonic() + FIRST_LOOK_S
        while True:
            found = self._looked_at(self._behind.index.current())
            if found or not self.waiting_to_be_inspected() or time.monotonic() > ends:
                return found
            time.sleep(_POLL_S)

    def _looked_at(self, listing: Listing) -> list[str]:
        found = ((series, self._behind.files.inspected(series)) for series in listing.series.values())
        return [
            image.id
            for series, seen in found
            if seen is not None and seen.refusal is None
            for image in images_of(series, seen)
        ]

    def waiting_to_be_inspected(self) -> int:
        """How many series nobody has looked at yet as they are now."""
        behind = self._behind
        return sum(behind.files.inspected(s) is None for s in behind.index.listing.series.values())

    def known_images(self) -> list[str]:
        """Ids of all images as they were some seconds ago: what is asked all the time does not keep the PACS busy."""
        index = self._behind.index
        return list(self.images(index.current(max_age_s=max(IDLE_S, index.max_age_s))))

    def instances_of_volumes(self, study_uid: str, image_id: str) -> dict[str, frozenset[str]]:
        """Series of several volumes -> the SOPInstanceUIDs of the one that is wanted; series of one are not in it.

        Args:
            study_uid: whose series.
            image_id: the wanted image; of other series the main one is.

        Raises:
            PacsError: a series is not known well enough, and the PACS does not answer.
            BadImageError: it cannot be used any more.
        """
        found = {}
        for image in self.images(self._behind.index.listing).values():  # the main one of a series comes first
            series = image.series
            if series.study_uid != study_uid or image.volume is None:
                continue
            if image.id == image_id or series.uid not in found:
                planes = self._behind.files.source(image).planes
                found[series.uid] = frozenset(uid for uid, _ in planes)
        return found

    def image_path(self, image_id: str) -> Path:
        """What Hermes reads an image from: its DICOM files, in the order and lattice of the series.

        Raises:
            NotFoundError: no such image.
            PacsError: it is not on this disk and the PACS does not answer.
        """
        return self._behind.files.image(self.require_image(image_id))

    @answers_errors
    def get_image_uri(self, image_id: str) -> str:
        """The image as a NIfTI file, for clients."""
        return str(self._behind.files.file(self.require_image(image_id)))

    @answers_errors
    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The bytes of `get_image_uri`."""
        return Path(self.get_image_uri(image_id)).read_bytes()

    @answers_errors
    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What the PACS says of an image, and what clients noted."""
        return self._image_info(self.require_image(image_id))

    def _image_info(self, image: Image) -> dict[str, Any]:
        series = image.series
        told = {
            "name": f"{image.id}.nii.gz",  # Slicer stores the download under this name, and reads it by its suffix
            "StudyInstanceUID": series.study_uid,
            "SeriesInstanceUID": series.uid,
            "Modality": series.modality,
            "PatientID": series.patient_id,
            "StudyDate": series.study_date,
            "StudyDescription": series.study_description,
            "SeriesDescription": series.description,
            **({"volume": image.volume} if image.volume else {}),
        }
        return {**told, **self._notes.get(f"image-{image.id}")}

    @answers_errors
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merge ``info`` into what is noted of the image."""
        check_json(info, "info")
        image = self.require_image(image_id)
        taken = sorted(_KEPT_BY_THE_STORE & set(info))
        if taken or not isinstance(info.get("strategy", {}), dict):
            msg = f"Expected notes under other names than {sorted(_KEPT_BY_THE_STORE)} (and no 'strategy'), got {taken}."
            raise BadRequestError(msg)
        with self._noting:
            name = f"image-{image.id}"
            self._notes.put(name, {**self._notes.get(name), **info})

    def patient_of(self, image_id: str) -> str | None:
        """PatientID and its issuer; the study where the PACS names no patient."""
        image = self.images(self._behind.index.listing).get(image_id)
        if image is None:
            return None
        series = image.series
        return f"{series.issuer}:{series.patient_id}" if series.patient_id else f"study:{series.study_uid}"

    @answers_errors
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: images come from the PACS."""
        msg = (
            "Expected images of this campaign to come from its PACS, got an upload. Send the DICOM files to the PACS; "
            "to segment a file without keeping it, use PUT /session/ or the field 'file' of /infer."
        )
        raise ConflictError(msg)

    @answers_errors
    def remove_image(self, image_id: str) -> None:
        """Refused: images are removed in the PACS."""
        msg = "Expected images of this campaign to be removed in their PACS, they are not removed from here."
        raise ConflictError(msg)

    # ------------------------------------------------------------------ labels

    @answers_errors
    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Check and store a label; the id of a label is the id of its image."""
        check_json(label_info, "params")
        image = self.require_image(image_id)
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        grid = self._behind.files.grid(image)
        label, params = read_label_file(
            Path(label_filename),
            label_info,
            grid=grid,
            source=lambda: self._behind.files.source(image),
            structures=self._behind.intake.structures(),
        )
        with self._saving:
            if tag == _FINAL:
                self._submit(image, label, params, grid)
            else:
                require_same_grid(grid, label)
                self._keep_prediction(image, tag, label, params)
        return image.id

    @contextmanager
    def storing(self, uids: Iterable[str]) -> Iterator[None]:
        """While a viewer stores these objects and they are taken as its labels, they are not read as labels of others."""
        told = frozenset(uids)
        self._being_stored.append(told)
        try:
            yield
        finally:
            self._being_stored.remove(told)

    def being_stored(self) -> frozenset[str]:
        """The objects of all that a viewer is storing now."""
        return frozenset[str]().union(*self._being_stored)

    def take_stored_object(self, dataset: Any, annotator: str | None) -> Stored | None:
        """A label object that a viewer has just stored in the PACS becomes the submitted label of its image.

        Args:
            dataset: a ``pydicom.Dataset`` of a SEG or RTSTRUCT, with pixels.
            annotator: who stored it; None: who the object says.

        Returns:
            Whose label it is now; None where it labels no image of this campaign.

        Raises:
            BadRequestError: it cannot be read, or names structures that the campaign does not label.
            PacsError: its image is not known well enough, and the PACS does not answer.
        """
        behind, uid = self._behind, str(dataset.get("SOPInstanceUID", ""))
        study = str(dataset.get("StudyInstanceUID", ""))
        image = image_of(dataset, study, behind.index.current().series, behind.files)
        if image is None:
            return None
        said = str(dataset.get("ContentCreatorName", "") or dataset.get("OperatorsName", "") or "")
        who = annotator or usable_name(said)
        params: dict[str, Any] = {"client_id": who or "anonymous"}
        source = behind.files.source(image)
        label, params = read_label_object(
            dataset, params, source=source, structures=behind.intake.structures()
        )
        with self._saving:
            if any(upload.sop_instance_uid == uid for upload in behind.uploads.all()):
                return Stored(image.id, tuple(params.get("covered", ())))  # stored a second time
            self._submit(image, label, params, source.grid, there_as=uid)
        # It may have been seen in the PACS, and read as somebody else's, a moment ago.
        origins = behind.campaign.pacs.label_objects()
        twins = [number for number, origin in origins.items() if any(is_from(part, uid) for part in origin)]
        behind.campaign.pacs.withdraw(twins)
        return Stored(image.id, tuple(params.get("covered", ())))

    def _submit(
        self,
        image: Image,
        label: LabelMap,
        params: Mapping[str, Any],
        grid: Grid,
        *,
        there_as: str | None = None,
    ) -> None:
        """Take a label in; ``there_as`` is its object where the PACS has it already."""
        offered = params.get("model_version") or self._shown(image.id)
        if isinstance(offered, str):
            params = {**params, "model_version": offered}
        accepted = self._behind.intake.accept(image.id, label, params, grid)
        self._notes.put(f"label-{accepted.record.id}", accepted.info)
        self.queue(accepted.record, accepted.submission, there_as=there_as)

    def _shown(self, image_id: str) -> str | None:
        """The version whose prediction was shown for an image last: before this label, or before an earlier one."""
        offers = self._offers.of(image_id)
        if offers:
            return offers[-1].model_version
        earlier = self._final(image_id)
        return earlier.model_version if earlier is not None else None

    def queue(self, record: LabelRecord, submission: Submission, *, there_as: str | None = None) -> None:
        """Send a label version to the PACS, now or when it is up."""
        about = about_label(
            submission,
            annotator=record.annotator,
            model_version=record.model_version,
            predicted=False,
            drawn=self._offers.drawn(record.image_id),
            number=record.number,
            at=record.submitted_at,
        )
        upload = self._behind.uploads.add(
            record.image_id,
            self._reference(self._archived(record)),
            about,
            there_as or new_uid(),
            label_id=record.id,
            done=there_as is not None,
        )
        logger.info(
            "Label version %d of an image is queued for the PACS as upload %d", record.number, upload.id
        )
        self.queued()

    def queue_missing(self) -> int:
        """Queue submitted labels that a crash kept from it; how many there were."""
        queued, origins = self._behind.uploads.label_ids(), self._behind.campaign.pacs.label_objects()
        missing = [
            record
            for record in self._behind.campaign.labels(FINAL, latest=False)
            if record.id not in queued and record.id not in origins and record.source == "annotator"
        ]
        for record in missing:
            names = self._behind.intake.archive.names_of(self._archived(record))
            label = read_label_map(self._archived(record))
            annotated = {name: state.value for name, state in record.annotated.items()}
            self.queue(record, Submission(LabelMap(label.array, label.grid, names), annotated))
        return len(missing)

    def _keep_prediction(self, image: Image, tag: str, label: LabelMap, info: Mapping[str, Any]) -> None:
        said = info.get("params")
        told: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
        version = str(
            told.get("model_version") or info.get("model_version") or info.get("model") or "unknown"
        )
        path = self._predictions.put(image.id, tag, label, checked_name(version, "model version"), info)
        if not self._behind.upload_predictions:
            return
        names = {int(value): str(name) for name, value in dict(told.get("label_names") or {}).items()}
        names = names or dict(label.names)
        if not names or not label.array.any():
            return
        submission = Submission(
            LabelMap(label.array, label.grid, names), dict.fromkeys(names.values(), PRESENT)
        )
        about = about_label(
            submission, annotator="", model_version=version, predicted=True, drawn=None, number=1,
            at=path.stat().st_mtime,
        )  # fmt: skip
        self._behind.uploads.add(image.id, self._reference(path), about, new_uid(), tag=tag)
        self.queued()

    def _reference(self, path: Path) -> str:
        return path.relative_to(self._behind.directory).as_posix()

    def _archived(self, record: LabelRecord) -> Path:
        return self._behind.intake.archive.path(record.path)

    def _final(self, image_id: str) -> LabelRecord | None:
        return next((r for r in self._behind.campaign.labels(FINAL) if r.image_id == image_id), None)

    def look_for_labels(self) -> None:
        """Submitted labels may have come, changed or gone in the PACS: look, unless somebody just has."""
        self._behind.index.current(wait=True)

    @answers_errors
    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The file of the latest label of an image with this tag; "" where there is none."""
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        image = self.require_image(label_id)
        if tag != _FINAL:
            kept = self._predictions.get(image.id, tag)
            return str(kept.path) if kept is not None else ""
        self.look_for_labels()
        record = self._final(image.id)
        return str(self._archived(record)) if record is not None else ""

    @answers_errors
    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """The bytes of `get_label_uri`; None where there is none."""
        uri = self.get_label_uri(label_id, label_tag)
        return Path(uri).read_bytes() if uri else None

    @answers_errors
    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is noted of a label."""
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        image = self.require_image(label_id)
        if tag != _FINAL:
            kept = self._predictions.get(image.id, tag)
            return kept.info if kept is not None else {}
        self.look_for_labels()
        record = self._final(image.id)
        return self._final_info(record) if record is not None else {}

    def _final_info(self, record: LabelRecord) -> dict[str, Any]:
        path = self._archived(record)
        annotated = {name: state.value for name, state in record.annotated.items()}
        told = label_info(self._behind.intake.archive.names_of(path), annotated, path)
        about = {"client_id": record.annotator, "source": record.source, "ts": int(record.submitted_at)}
        return {**about, **told, **self._notes.get(f"label-{record.id}")}

    @answers_errors
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merge ``info`` into what is noted of a label; what was annotated cannot be changed that way."""
        check_json(info, "info")
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        image = self.require_image(label_id)
        taken = sorted((_KEPT_BY_THE_STORE | RESERVED_PARAMS) & set(info))
        if taken:
            msg = f"Expected notes under other names, {taken} are kept by the server."
            raise BadRequestError(msg)
        record = self._final(image.id) if tag == _FINAL else None
        if record is None and (tag == _FINAL or self._predictions.get(image.id, tag) is None):
            msg = "Expected the tag of a label of this image, there is none."
            raise NotFoundError(msg)
        with self._noting:
            if record is None:
                self._predictions.note(image.id, tag, info)
            else:
                name = f"label-{record.id}"
                self._notes.put(name, {**self._notes.get(name), **info})

    @answers_errors
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label back: it trains nothing any more, and no object in the PACS is taken for it again.

        Objects of this campaign are removed from the PACS where that lets itself be asked. Archived versions stay.
        """
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        image, behind = self.require_image(label_id), self._behind
        for upload in behind.uploads.all():
            if (upload.image_id, upload.tag) == (image.id, tag):
                behind.uploads.withdraw(upload.id)
        if tag == _FINAL:
            behind.campaign.pacs.refuse_objects_of(image.id, LABEL_DELETED)
            behind.campaign.withdraw_label(image.id)
        else:
            self._predictions.remove(image.id, tag)
        self.queued()

    # ------------------------------------------------------------------- lists

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tag -> label id."""
        tags = self._predictions.tags_of(image_id)
        final = [_FINAL] if image_id in self._behind.campaign.labelled_ids() else []
        return dict.fromkeys([*final, *tags], image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The label id of a tag; "" where there is none."""
        return self.get_labels_by_image_id(image_id).get(getattr(tag, "value", tag), "")

    def get_labeled_images(
        self, label_tag: str | None = None, labels: Sequence[str] | None = None
    ) -> list[str]:
        """Ids of the images with a submitted label, each once."""
        labelled = self._behind.campaign.labelled_ids()
        return [image_id for image_id in self.images() if image_id in labelled]

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: Sequence[str] | None = None
    ) -> list[str]:
        """Ids of the images without one."""
        labelled = self._behind.campaign.labelled_ids()
        return [image_id for image_id in self.images() if image_id not in labelled]

    @answers_errors
    def datalist(self) -> list[dict[str, Any]]:
        """Image and label file of every labelled image; images that are not on this disk are downloaded."""
        here = set(self.list_images())
        return [
            {"image": self.get_image_uri(record.image_id), "label": str(self._archived(record))}
            for record in self._behind.campaign.labels(FINAL)
            if record.image_id in here
        ]

    def status(self) -> dict[str, Any]:
        """Counts for viewers, and how the PACS does; never fails."""
        images, index = self.images(), self._behind.index
        labelled, progress = (
            self._behind.campaign.labelled_ids(),
            self._behind.campaign.progress.of(images),
        )
        tags: dict[str, int] = {_FINAL: sum(image_id in labelled for image_id in images)}
        for image_id, names in self._predictions.tags().items():
            for name in names if image_id in images else ():
                tags[name] = tags.get(name, 0) + 1
        uploads = self._behind.uploads.counts()
        return {
            **asdict(progress),
            "label_tags": {name: count for name, count in tags.items() if count},
            "pacs": {"reachable": index.error is None, "error": index.error, "uploads": uploads},
        }

    def json(self) -> dict[str, Any]:
        """Every image with its labels, as MONAI Label's own datastore writes it."""
        finals = {record.image_id: record for record in self._behind.campaign.labels(FINAL)}
        tags = self._predictions.tags()
        objects = {}
        for image_id, image in self.images().items():
            labels: dict[str, Any] = {}
            if image_id in finals:
                labels[_FINAL] = {"ext": ".nii.gz", "info": self._final_info(finals[image_id])}
            for tag in tags.get(image_id, []):
                kept = self._predictions.get(image_id, tag)
                if kept is not None:
                    labels[tag] = {"ext": ".nii.gz", "info": kept.info}
            objects[image_id] = {
                "image": {"ext": ".nii.gz", "info": self._image_info(image)},
                "labels": labels,
            }
        return {"name": self._name, "description": self._description, "objects": objects}

    @answers_errors
    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of all labelled cases."""
        here = set(self.list_images())
        records = [r for r in self._behind.campaign.labels(FINAL) if r.image_id in here]
        if not records:
            msg = "Expected at least one labelled image to put into an archive, there is none yet."
            raise ConflictError(msg)
        handle, path = tempfile.mkstemp(suffix=".zip")
        os.close(handle)
        with zipfile.ZipFile(path, "w") as archive:
            for record in records[: limit_cases or None]:
                archive.write(self.get_image_uri(record.image_id), f"image/{record.image_id}.nii.gz")
                archive.write(self._archived(record), f"label/{record.image_id}.nii.gz")
        return path

    def refresh(self) -> None:
        """The next list is a fresh one."""
        self._behind.index.expire()

    # ------------------------------------------------------------------- names

    def name(self) -> str:
        """Of the datastore."""
        return self._name

    def set_name(self, name: str) -> None:
        """Renames it for this run."""
        self._name = name

    def description(self) -> str:
        """What it is."""
        return self._description

    def set_description(self, description: str) -> None:
        """Describes it for this run."""
        self._description = description
