"""Labels that others store in the PACS become label versions of the campaign, and go when they are deleted there.

The label of an image is its latest submission together with what others stored after it was submitted; of each
structure the newest counts. So whatever is corrected last wins, wherever it was corrected.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from hermes.adapters.annotators import usable_name
from hermes.adapters.dicomweb.client import PacsClient
from hermes.adapters.dicomweb.listing import Listing, ObjectInfo, SeriesInfo
from hermes.adapters.dicomweb.plans import Plan, plan_of
from hermes.adapters.dicomweb.series import Image, SeriesFiles, images_of
from hermes.campaign.campaign import Campaign
from hermes.campaign.pacs_objects import ObjectState, PacsObject
from hermes.campaign.records import FINAL, LabelRecord
from hermes.campaign.uploads import Upload, UploadState
from hermes.dicom import DicomLabels, Mask, Segment, age_key, read_segmentations, referenced_series
from hermes.errors import BadImageError, BadLabelError, HermesError, UnknownStructureError
from hermes.submission import (
    ABSENT,
    PRESENT,
    LabelArchive,
    Submission,
    campaign_values,
    match_structure,
)
from hermes.transforms.reading import read_label_map

logger = logging.getLogger(__name__)

BUDGET_S = 1.0
"""How long one look may take over new objects before their labels are made; what is left comes next."""
_HERMES = "Hermes"

ImportLabel = Callable[[str, Submission, str], LabelRecord]
"""Archives and records a label that was read from the PACS: (image id, submission, annotator)."""


class LabelsIn:
    """Follows the label objects of the PACS.

    Args:
        campaign: whose labels are followed.
        archive: of label versions.
        client: of the server.
        files: its image series.
        directory: where label objects are kept.
        images: the images of a series.
        structures: what the campaign labels.
        being_stored: the objects that a viewer is storing: they become its labels in a moment.
        import_label: enters a label.
        changed: called when a label came or went.
    """

    def __init__(
        self,
        campaign: Campaign,
        archive: LabelArchive,
        client: PacsClient,
        files: SeriesFiles,
        *,
        directory: Path,
        images: Callable[[Listing], Mapping[str, Image]],
        structures: Callable[[], tuple[str, ...]],
        being_stored: Callable[[], frozenset[str]],
        import_label: ImportLabel,
        changed: Callable[[], None],
    ) -> None:
        self._campaign, self._archive, self._client, self._files = campaign, archive, client, files
        self._directory, self._images, self._structures = directory, images, structures
        self._being_stored, self._import, self._changed = being_stored, import_label, changed
        self.waiting = 0

    def follow(self, listing: Listing) -> bool:
        """Bring the campaign's labels to what the listing holds; whether objects are left to look at.

        Raises:
            PacsError: the server does not answer (any more).
        """
        coming = self._being_stored()  # asked first: what was taken since then is among the uploads
        known = self._campaign.pacs.all()
        uploads = self._campaign.uploads.all()
        own = {upload.sop_instance_uid for upload in uploads}
        self._vanished(listing, known)
        self._own_vanished(listing, uploads)
        passed = own | coming
        fresh = [info for uid, info in listing.objects.items() if uid not in passed and _is_new(info, known)]
        ends = time.monotonic() + BUDGET_S
        done = 0
        for info in fresh:
            if time.monotonic() > ends:
                break
            self._campaign.pacs.put(self._look(info, listing.series))
            done += 1
        self.waiting = len(fresh) - done
        plans = self._plans(self._images(listing))
        for plan in plans:
            self._rebuild(plan)
        if plans:
            self._changed()
        return self.waiting > 0

    # ---------------------------------------------------------------- deletion

    def _vanished(self, listing: Listing, known: Mapping[str, PacsObject]) -> None:
        """Notes the foreign objects that are gone."""
        gone = [
            found
            for uid, found in known.items()
            if found.gone_at is None
            and uid not in listing.objects
            and not self._client.has_instance(found.study_uid, uid)
        ]
        if gone:
            self._campaign.pacs.gone(found.sop_instance_uid for found in gone)

    def _own_vanished(self, listing: Listing, uploads: Sequence[Upload]) -> None:
        """Withdraws the labels whose objects of ours are gone, but for those that still wait to be stored."""
        valid = {label.id for label in self._campaign.labels(FINAL, latest=False)}
        missing = [
            upload
            for upload in uploads
            if (
                upload.state is UploadState.KEPT
                or (upload.state is UploadState.DONE and upload.label_id in valid)
            )
            and upload.sop_instance_uid not in listing.objects
        ]
        images = self._images(listing) if missing else {}
        for upload in missing:
            image = images.get(upload.image_id)
            if image is None:
                continue  # its series is gone or filtered out: the label stays with its image
            if not self._client.has_instance(image.series.study_uid, upload.sop_instance_uid):
                if upload.label_id is not None and self._campaign.pacs.withdraw([upload.label_id]):
                    self._changed()
                self._campaign.uploads.withdrawn(upload.id)

    # ------------------------------------------------------------------ looking

    def _look(self, info: ObjectInfo, listed: Mapping[str, SeriesInfo]) -> PacsObject:
        seen = PacsObject(
            info.sop_uid, info.study_uid, info.series_uid, info.kind, info.stamp, None, ObjectState.REFUSED, None,
            time.time(),
        )  # fmt: skip
        try:
            dataset = self._fetch(info)
        except BadLabelError as error:
            return replace(seen, reason=str(error))
        image = image_of(dataset, info.study_uid, listed, self._files)
        if image is None:
            return replace(seen, reason="It labels no series that this campaign lists.")
        seen = replace(seen, image_id=image.id)
        if _is_prediction_of_ours(dataset):
            return replace(seen, reason="A prediction of Hermes that nobody has corrected: no label.")
        return replace(seen, state=ObjectState.READ)

    def _fetch(self, info: ObjectInfo) -> Any:
        folder = Path(tempfile.mkdtemp(dir=_made(self._directory)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = self._client.instance(info.study_uid, info.series_uid, info.sop_uid, folder)
            next(iter(sorted(folder.iterdir()))).replace(self._place(info.sop_uid))
            return dataset
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _place(self, sop_uid: str) -> Path:
        return self._directory / f"{sop_uid}.dcm"

    def _read_again(self, found: PacsObject) -> Any:
        place = self._place(found.sop_instance_uid)
        if place.is_file():
            return pydicom.dcmread(place)
        info = ObjectInfo(found.sop_instance_uid, found.study_uid, found.series_uid, found.kind, found.stamp)
        return self._fetch(info)

    # ----------------------------------------------------------------- building

    def _plans(self, images: Mapping[str, Image]) -> list[Plan]:
        """What has to be done so that every image's label is what its submission and the objects of others say.

        It follows from what is stored, so that what an error kept from being done is done at the next look.
        """
        origins = self._campaign.pacs.label_objects()
        own = {upload.sop_instance_uid for upload in self._campaign.uploads.all()}
        valid: dict[str, list[LabelRecord]] = defaultdict(list)
        for label in self._campaign.labels(FINAL, latest=False):
            valid[label.image_id].append(label)
        here: dict[str, dict[str, PacsObject]] = defaultdict(dict)
        for found in self._campaign.pacs.all().values():
            if found.sop_instance_uid in own:
                continue  # a viewer stored it, and it was taken as a submission after it was seen
            if found.image_id and found.gone_at is None and found.state is ObjectState.READ:
                here[found.image_id][found.sop_instance_uid] = found
        plans = (
            plan_of(image, valid.get(image.id, []), here.get(image.id, {}), origins)
            for image in images.values()
        )
        return [plan for plan in plans if plan is not None]

    def _rebuild(self, plan: Plan) -> None:
        if plan.stale:
            self._campaign.pacs.withdraw(plan.stale)
        if not plan.objects:
            return
        try:
            record = self._merge(plan.image, plan.objects, plan.base)
        except (HermesError, OSError):
            raise  # the PACS or the disk; next time
        except Exception as error:
            logger.exception("A label of the PACS could not be read")
            self._refuse(plan.objects, f"It could not be read ({type(error).__name__}). The log says more.")
            return
        if record is not None:
            self._campaign.pacs.note_label(record.id, plan.origin)

    def _merge(
        self, image: Image, objects: Sequence[PacsObject], base: LabelRecord | None
    ) -> LabelRecord | None:
        try:
            source = self._files.source(image)
            datasets = _latest_of_ours([self._read_again(found) for found in objects])
        except (BadImageError, BadLabelError) as error:
            self._refuse(objects, str(error))
            return None
        structures = self._structures()
        read = read_segmentations(datasets, source, structures=structures)
        refused = {refusal.sop_instance_uid: refusal.reason for refusal in read.refused}
        for found in objects:
            if found.sop_instance_uid in refused:
                self._refuse([found], refused[found.sop_instance_uid])
        known, absent, unknown = _known(read, structures)
        if not known and not absent:
            usable = [found for found in objects if found.sop_instance_uid not in refused]
            self._refuse(usable, _nothing_known(unknown))
            return None
        read = replace(read, segments=known)
        submission = self._submission(read, absent, base, structures)
        self._tell_left_out(objects, known, unknown, read.covered(submission.label_map))
        used = [data for data in datasets if str(data.get("SOPInstanceUID", "")) not in refused]
        return self._import(image.id, submission, _creator(known, used) or "pacs")

    def _submission(
        self, read: DicomLabels, absent: Sequence[str], base: LabelRecord | None, structures: Sequence[str]
    ) -> Submission:
        annotated = {segment.name: PRESENT for segment in read.segments} | dict.fromkeys(absent, ABSENT)
        segments = list(read.segments)
        if base is not None:
            path = self._archive.path(base.path)
            drawn = read_label_map(path).array
            for value, name in LabelArchive.names_of(path).items():
                if name in annotated or name not in structures or name not in base.annotated:
                    continue
                annotated[name] = base.annotated[name].value
                mask = Mask.of(drawn == value)
                if mask.count:
                    segments.append(Segment(name, name, mask, "", "", "", "", base.annotator, "", "", value))
        values = campaign_values(structures)
        label_map = replace(read, segments=tuple(segments)).label_map(values)
        seen = set(np.unique(label_map.array).tolist())  # what lies wholly under another is not annotated
        annotated = {name: how for name, how in annotated.items() if how == ABSENT or values[name] in seen}
        names = {value: name for name, value in values.items() if name in annotated}
        return Submission(replace(label_map, names=names), annotated)

    def _refuse(self, objects: Iterable[PacsObject], reason: str) -> None:
        for found in objects:
            self._campaign.pacs.put(replace(found, state=ObjectState.REFUSED, reason=reason))

    def _tell_left_out(
        self,
        objects: Sequence[PacsObject],
        known: Sequence[Segment],
        unknown: Mapping[str, str],
        covered: Mapping[str, str],
    ) -> None:
        """Notes with each object what of it is not used: names that nobody asks for, voxels under other structures."""
        for found in objects:
            uid = found.sop_instance_uid
            names = sorted(name for name, origin in unknown.items() if origin == uid)
            used = [segment.name for segment in known if segment.sop_instance_uid == uid]
            reasons = [f"Not labelled in this campaign and left out: {', '.join(names)}."] if names else []
            reasons += [f"{covered[name]}." for name in used if name in covered]
            if used and reasons:
                self._campaign.pacs.put(replace(found, reason=" ".join(reasons)))


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _is_new(info: ObjectInfo, known: Mapping[str, PacsObject]) -> bool:
    found = known.get(info.sop_uid)
    return found is None or found.gone_at is not None or found.stamp != info.stamp


def image_of(
    dataset: Any, study_uid: str, listed: Mapping[str, SeriesInfo], files: SeriesFiles
) -> Image | None:
    """The image that a label object labels: of the series that it names, else of the only series of its study.

    Raises:
        PacsError: the series has to be looked at, and the PACS does not answer.
    """
    named = referenced_series(dataset)
    series = [info for uid, info in listed.items() if uid in named]
    if not named:
        series = [info for info in listed.values() if info.study_uid == study_uid]
        series = series if len(series) == 1 else []
    found = [image for info in series for image in images_of(info, files.inspect(info))]
    if len(found) < 2:
        return found[0] if found else None
    instances = _referenced_instances(dataset)

    def shared(image: Image) -> int:
        try:
            return len(instances & {uid for uid, _ in files.source(image).planes})
        except BadImageError:
            return 0

    return max(found, key=shared)  # of several alike the first, which is the main volume of its series


def _referenced_instances(dataset: Any) -> set[str]:
    """The images that a SEG says it was drawn on."""
    return {
        str(instance.get("ReferencedSOPInstanceUID", ""))
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
    }


def _is_prediction_of_ours(dataset: Any) -> bool:
    kinds = {str(item.get("SegmentAlgorithmType", "")) for item in dataset.get("SegmentSequence") or ()}
    return str(dataset.get("Manufacturer", "")) == _HERMES and kinds == {"AUTOMATIC"}


def _latest_of_ours(datasets: Sequence[Any]) -> list[Any]:
    """Without the objects of Hermes that a later one replaces: each is a whole label."""
    ours = [data for data in datasets if str(data.get("Manufacturer", "")) == _HERMES]
    latest = max(ours, key=age_key, default=None)
    replaced = {id(data) for data in ours if data is not latest}
    return [data for data in datasets if id(data) not in replaced]


def _creator(drawn: Sequence[Segment], datasets: Sequence[Any]) -> str | None:
    """Who drew a label; where it only declares absences, who made the newest object that says so."""
    newest_first = sorted(datasets, key=age_key, reverse=True)
    said = [segment.creator for segment in drawn]
    for keyword in ("ContentCreatorName", "OperatorsName"):
        said += [str(data.get(keyword, "") or "") for data in newest_first]
    return next((name for one in said if (name := usable_name(one))), None)


def _known(
    read: DicomLabels, structures: Sequence[str]
) -> tuple[tuple[Segment, ...], list[str], dict[str, str]]:
    """Segments and absent names in the campaign's spelling, and the names that it does not label -> object."""
    known: dict[str, Segment] = {}
    unknown: dict[str, str] = {}
    for segment in read.segments:
        try:
            name = match_structure(segment.name, structures)
        except UnknownStructureError:
            unknown[segment.name] = segment.sop_instance_uid
        else:
            known.setdefault(name, replace(segment, name=name))
    absent = []
    for name in read.absent:
        try:
            matched = match_structure(name, structures)
        except UnknownStructureError:
            continue
        if matched not in known:
            absent.append(matched)
    return tuple(known.values()), absent, unknown


def _nothing_known(unknown: Mapping[str, str]) -> str:
    if unknown:
        return f"None of its structures is labelled in this campaign: {', '.join(sorted(unknown))}."
    return "No voxel is drawn and nothing is declared absent."
