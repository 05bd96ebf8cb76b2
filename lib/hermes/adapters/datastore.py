"""MONAI Label's local datastore, with every way in checked and every label version kept."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag

from hermes.adapters.errors import answers_errors
from hermes.adapters.images import LONGEST_SHOWN
from hermes.adapters.requests import check_json
from hermes.adapters.submitting import (
    RESERVED_PARAMS,
    Intake,
    Record,
    checked_name,
    label_info,
    require_same_grid,
    sha256_of,
)
from hermes.adapters.watching import watch_folder
from hermes.campaign.progress import Progress
from hermes.campaign.records import LabelRecord
from hermes.errors import BadImageError, BadLabelError, BadRequestError, ConflictError, NotFoundError
from hermes.labelled import IMAGE_SUFFIXES
from hermes.publish import write_atomically
from hermes.records import NewStructure, Volume
from hermes.submission import LabelArchive
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map

logger = logging.getLogger(__name__)

IMAGE_PATTERNS = tuple(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
_KEPT_BY_THE_STORE = frozenset({"name", "path", "ts"})


class HermesLocalDatastore(LocalDatastore):  # type: ignore[misc]
    """Images and labels in a folder.

    A submitted label (tag ``final``) is checked, archived under a new version number, recorded in the
    campaign's database, and only then copied to where MONAI Label's clients look for it. A refused one leaves
    everything as it was.
    """

    def __init__(
        self,
        studies: str,
        *,
        structures: Callable[[], tuple[str, ...]],
        confirm: Callable[[tuple[NewStructure, ...]], None],
        archive: LabelArchive,
        record: Record,
        withdraw: Callable[[str], object],
        progress: Callable[[Iterable[str]], Progress],
        auto_reload: bool,
        read_only: bool,
    ) -> None:
        """Open the folder.

        Args:
            studies: the folder.
            structures: what the campaign labels now.
            confirm: called with the structures that a request adds, before its label is stored.
            archive: where label versions go.
            record: called with (image id, archived file, its sha256, submission, params) once a label is
                safely on disk.
            withdraw: called with an image id when its submitted label is taken back.
            progress: how far the labelling of these images is.
            auto_reload: watch the folder for new images.
            read_only: do not look for new images at the start.
        """
        self._intake = Intake(structures, confirm, archive, record)
        self._archive, self._withdraw, self._progress = archive, withdraw, progress
        self._saving = threading.Lock()
        super().__init__(studies, extensions=IMAGE_PATTERNS, auto_reload=False, read_only=read_only)
        self._auto_reload = auto_reload
        if auto_reload:
            images = Path(self._datastore.image_path())
            self._observer = watch_folder(
                images,
                Path(self._datastore.label_path(None)),
                Path(self._datastore_config_path),
                IMAGE_PATTERNS,
                come_or_gone=self._on_any_event,
                index_changed=self._on_modify_event,
                poll=self._is_on_mount(str(images)),
            )

    @answers_errors
    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Check and store a label; the id of a label is the id of its image."""
        check_json(label_info, "params")
        self.require_image(image_id)
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        with self._saving:
            if tag != DefaultLabelTag.FINAL.value:
                return self._save_offered(image_id, Path(label_filename), tag, label_info)
            return self._save_submitted(image_id, Path(label_filename), label_info)

    def _save_submitted(self, image_id: str, file: Path, params: dict[str, Any]) -> str:
        accepted = self._intake.accept(image_id, read_label_map(file), params, self.image(image_id).grid)
        return self._place(image_id, accepted.path, DefaultLabelTag.FINAL.value, accepted.info)

    def _save_offered(self, image_id: str, file: Path, tag: str, info: dict[str, Any]) -> str:
        label = read_label_map(file)
        require_same_grid(self.image(image_id).grid, label)
        canonical = file.with_name(f"{file.name.split('.')[0]}-canonical.nii.gz")
        try:
            write_label_map(label, canonical)
            return self._place(image_id, canonical, tag, info)
        finally:
            canonical.unlink(missing_ok=True)

    def _place(self, image_id: str, file: Path, tag: str, info: dict[str, Any]) -> str:
        # The stock call copies in place; a crash in the middle of it costs only this copy: the archive has it.
        label_id: str = super().save_label(image_id, str(file), tag, info)
        return label_id

    @answers_errors
    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take in an uploaded image under a new id."""
        check_json(image_info, "params")
        name = checked_name(image_id or Path(image_filename).name.split(".")[0], "image id")
        if name in self.list_images():
            msg = f"Expected the id of a new image, {name!r} exists. Upload it under another id."
            raise ConflictError(msg)
        if not any(Path(image_filename).match(pattern) for pattern in IMAGE_PATTERNS):
            msg = f"Expected an image file out of {IMAGE_PATTERNS}, got {Path(image_filename).suffix!r}."
            raise BadImageError(msg)
        read_volume(image_filename)
        added: str = super().add_image(name, image_filename, image_info)
        return added

    @answers_errors
    def remove_image(self, image_id: str) -> None:
        """Remove an image and the copies of its labels; archived label versions stay, but train nothing any more."""
        self.require_image(image_id)
        super().remove_image(image_id)
        self._withdraw(image_id)

    @answers_errors
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take a label back: its copy goes and it trains nothing any more; archived versions stay on disk."""
        self.require_image(label_id)
        tag = checked_name(getattr(label_tag, "value", label_tag), "tag")
        super().remove_label(label_id, tag)
        if tag == DefaultLabelTag.FINAL.value:
            self._withdraw(label_id)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is noted of an image, without the place of its file on the server."""
        info: dict[str, Any] = super().get_image_info(image_id)
        return {key: value for key, value in info.items() if key != "path"}

    @answers_errors
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merge ``info`` into what is noted of the image."""
        check_json(info, "info")
        self.require_image(image_id)
        taken = sorted(_KEPT_BY_THE_STORE & set(info))
        if taken or not isinstance(info.get("strategy", {}), dict):
            msg = f"Expected notes under other names than {sorted(_KEPT_BY_THE_STORE)} (and no 'strategy'), got {taken}."
            raise BadRequestError(msg)
        super().update_image_info(image_id, info)

    @answers_errors
    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merge ``info`` into what is noted of a label; what was annotated cannot be changed that way."""
        check_json(info, "info")
        self.require_image(label_id)
        if self._datastore.label(label_id, label_tag) is None:
            msg = "Expected the tag of a label of this image, there is none."
            raise NotFoundError(msg)
        taken = sorted((_KEPT_BY_THE_STORE | RESERVED_PARAMS | {"annotated", "version"}) & set(info))
        if taken:
            msg = f"Expected notes under other names, {taken} are kept by the server."
            raise BadRequestError(msg)
        super().update_label_info(label_id, label_tag, info)

    @answers_errors
    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of all labelled cases."""
        if not self.datalist():
            msg = "Expected at least one labelled image to put into an archive, there is none yet."
            raise ConflictError(msg)
        path: str = super().get_dataset_archive(limit_cases)
        return path

    def status(self) -> dict[str, Any]:
        """Counts for viewers: unusable images and rejected labels do not count."""
        return {**super().status(), **asdict(self._progress(self.list_images()))}

    def require_image(self, image_id: str) -> None:
        """Nothing, if this is the id of an image here.

        Raises:
            NotFoundError: it is not.
        """
        if image_id not in self._datastore.objects:
            count, image_id = len(self.list_images()), image_id[:LONGEST_SHOWN]
            msg = f"Expected the id of one of the {count} images here, got {image_id!r}. GET /datastore/?output=all lists them."
            raise NotFoundError(msg)

    def image(self, image_id: str) -> Volume:
        """The image of this id.

        Raises:
            NotFoundError: no such image.
            BadImageError: it cannot be read.
        """
        self.require_image(image_id)
        return read_volume(self.get_image_uri(image_id))

    def restore_copies(self, latest: Iterable[LabelRecord]) -> int:
        """Put back submitted labels that the campaign knows and MONAI Label's folder lacks or has in part.

        That is what a crash between archiving and copying leaves. How many there were.
        """
        restored = 0
        for label in latest:
            if label.image_id not in self._datastore.objects:
                continue
            try:
                archived = self._archive.path(label.path)
            except BadLabelError as error:
                logger.error("A label of %s cannot be restored: %s", label.image_id, error)
                continue
            copy = self.get_label_uri(label.image_id, DefaultLabelTag.FINAL.value)
            if copy and Path(copy).is_file() and sha256_of(Path(copy)) == label.sha256:
                continue
            annotated = {name: state.value for name, state in label.annotated.items()}
            info = label_info(self._archive.names_of(archived), annotated, archived)
            self._place(label.image_id, archived, DefaultLabelTag.FINAL.value, info)
            restored += 1
        if restored:
            logger.warning("Restored %d submitted labels from the archive", restored)
        return restored

    def _update_datastore_file(self, lock: bool = True) -> None:
        # The stock method truncates the index before it writes: killed in between, no server starts again.
        with FileLock(self._lock_file) if lock else nullcontext():
            self._ignore_event_config = True
            index = self._datastore.model_dump(exclude={"base_path"})
            path = Path(self._datastore_config_path)
            text = json.dumps(index, indent=2, default=str)
            LocalDatastoreModel.model_validate_json(
                text
            )  # an index that cannot be read back is never written
            write_atomically(path, text)
            self._config_ts = path.stat().st_mtime
