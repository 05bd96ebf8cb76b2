"""The state of a labelling campaign, shared by the server, the trainer and further servers.

Every method is one short transaction; all of them are safe from any thread and any process. Image and label
files stay in the datastore: the campaign knows their names, hashes and history.

`Campaign` is the one door to the database: it opens the transactions, and what it does in them beyond a statement or two
stands in ``label_versions.py``, ``runs.py``, ``versions.py``, ``scores.py``, ``counts.py`` and ``rows.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import select, update

from hermes.campaign import events, label_versions, reviews, rows, runs, versions
from hermes.campaign import scores as scoring
from hermes.campaign.agreements import Agreements
from hermes.campaign.assignments import Assignments, end_leases
from hermes.campaign.board import Board
from hermes.campaign.confirmed import ConfirmedStructures
from hermes.campaign.counts import count_all
from hermes.campaign.database import Database
from hermes.campaign.events import note
from hermes.campaign.facts import Facts
from hermes.campaign.holdout import HoldoutRule, enter_images, holdout_ids, patient_from_name, training_ids
from hermes.campaign.holdout_scores import HoldoutScores
from hermes.campaign.models import EventRow, ImageRow, LabelRow, RunRow
from hermes.campaign.pacs_objects import PacsObjects
from hermes.campaign.progress import Counting
from hermes.campaign.records import (
    FINAL,
    Annotated,
    Counts,
    Event,
    ImageRecord,
    LabelRecord,
    RunRecord,
    RunState,
    Score,
    VersionRecord,
    VersionState,
)
from hermes.campaign.uploads import Uploads
from hermes.types import CaseId, StructureName


class Campaign:
    """A campaign and its database.

    Args:
        location: path of an SQLite file (made when absent), or a database URL.
        clock: seconds since 1970 (UTC).
        holdout: how patients who are new to the campaign are assigned; none are held out where not given.

    Raises:
        ConflictError: the database is of a newer schema.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        holdout: HoldoutRule | None = None,
    ) -> None:
        self._database = Database(location)
        self._clock, self._holdout = clock, holdout or HoldoutRule()
        self.confirmed = ConfirmedStructures(self._database, clock)
        self.holdout_scores = HoldoutScores(self._database)
        self.uploads = Uploads(self._database, clock)
        self.pacs = PacsObjects(self._database, clock)
        self.assignments = Assignments(self._database, clock)
        self.reviews = reviews.Reviews(self._database, clock)
        self.agreements = Agreements(self._database)
        self.facts = Facts(self._database, clock)
        self.progress = Counting(self.board())
        self._new_labels: tuple[tuple[int, int], int] | None = None

    def __enter__(self) -> Campaign:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._database.close()

    # ------------------------------------------------------------------ images

    def sync_images(
        self, ids: Iterable[CaseId], patient_of: Callable[[CaseId], str | None] = patient_from_name
    ) -> tuple[list[CaseId], list[CaseId]]:
        """Takes over the list of the datastore; the ids that are new (or back), and those that are gone.

        An image that is gone keeps its labels and its history. A new one is assigned to training or to the
        hold-out, for ever.

        Args:
            ids: of all images that the datastore has.
            patient_of: whose an image is, asked for new images only; ``None``: told by the image's name.
        """
        current = set(ids)
        with self._database.read() as session:  # mostly nothing has changed, and nobody has to wait
            changes = rows.image_changes(session, current)
        if changes.none:
            return [], []
        # Asked outside of a transaction: the answer may come from a server far away.
        asked = {*changes.new, *changes.incomplete} & current
        patients = {name: patient_of(name) for name in asked}
        now = self._clock()
        with self._database.write() as session:
            changes = rows.image_changes(session, current)
            entering = (*changes.new, *changes.incomplete)
            whose = {name: patients.get(name) or patient_from_name(name) for name in entering}
            enter_images(session, whose, self._holdout, now=now)
            missing = [(name, now) for name in changes.gone] + [(name, None) for name in changes.back]
            if missing:
                values = [{"id": name, "missing_since": since} for name, since in missing]
                session.execute(update(ImageRow), values)
            note(session, now, events.IMAGES_CHANGED, new=len(entering), gone=len(changes.gone))
        return sorted([*changes.new, *changes.back]), changes.gone

    def images(self) -> list[ImageRecord]:
        """The images that the datastore has, by id."""
        with self._database.read() as session:
            found = session.scalars(
                select(ImageRow).where(ImageRow.missing_since.is_(None)).order_by(ImageRow.id)
            )
            return [rows.image_record(row) for row in found]

    def holdout_ids(self) -> set[CaseId]:
        """The held-out images: their labels measure candidates and train nothing."""
        with self._database.read() as session:
            return holdout_ids(session)

    def training_ids(self) -> set[CaseId]:
        """The images whose labels may be trained on."""
        with self._database.read() as session:
            return training_ids(session)

    def describe_image(self, image_id: CaseId, *, content_hash: str) -> None:
        """Notes the hash of the image's content.

        Raises:
            NotFoundError: the campaign has no such image.
        """
        with self._database.write() as session:
            rows.known_image(session, image_id).content_hash = content_hash

    def quarantine(self, image_id: CaseId, reason: str | None) -> None:
        """Keeps an unusable image out of training and of what is offered; ``None`` lets it back in.

        Nobody has it reserved from then on.

        Raises:
            NotFoundError: the campaign has no such image.
        """
        with self._database.write() as session:
            rows.known_image(session, image_id).quarantined_reason = reason
            if reason is not None:
                end_leases(session, image_id, None, self._clock())
            note(session, self._clock(), events.IMAGE_QUARANTINED, image=image_id, reason=reason)

    # ------------------------------------------------------------------ labels

    def record_label(
        self,
        image_id: CaseId,
        tag: str,
        path: str,
        sha256: str,
        annotator: str,
        annotated: Mapping[StructureName, Annotated | str],
        model_version: str | None = None,
        *,
        source: str = "annotator",
        patient: str | None = None,
    ) -> LabelRecord:
        """The label as its next version; earlier versions stay.

        Args:
            image_id: the image; it becomes known when it is not yet, since no label may be lost.
            tag: "final" for what training uses.
            path: where the file of this version lies.
            sha256: of that file, hex.
            annotator: who submitted it.
            annotated: per structure, whether it was drawn ("present") or looked for in vain ("absent").
            model_version: of the prediction that the annotator was offered, if any.
            source: how it came ("annotator", "import", ...).
            patient: whose the image is, for one that is not known yet; None: told by its name.

        Raises:
            BadRequestError: ``annotated`` holds something else than "present" and "absent".
        """
        values = rows.annotated_values(annotated)
        now = self._clock()
        with self._database.write() as session:
            entering = {image_id: patient or patient_from_name(image_id)}
            enter_images(session, entering, self._holdout, now=now)
            return label_versions.add(
                session, image_id, tag, now=now, path=path, sha256=sha256, annotator=annotator,
                model_version=model_version, source=source, annotated=values,
            )  # fmt: skip

    def withdraw_label(self, image_id: CaseId, tag: str = FINAL) -> int:
        """Takes back all versions of a label, as when its file is deleted; how many there were."""
        with self._database.write() as session:
            return label_versions.withdraw(session, image_id, tag, now=self._clock())

    def labels(
        self,
        tag: str = FINAL,
        *,
        latest: bool = True,
        image_id: CaseId | None = None,
        withdrawn: bool = False,
    ) -> list[LabelRecord]:
        """The labels of a tag by image and number: the latest version of each image, or all versions; of one image.

        Those that were taken back are among them only with ``withdrawn``.
        """
        with self._database.read() as session:
            records = label_versions.listed(session, tag, image_id=image_id, withdrawn=withdrawn)
        return list({record.image_id: record for record in records}.values()) if latest else records

    def training_labels(self) -> list[LabelRecord]:
        """The labels that training takes (see `reviews.chosen`), by image and number.

        An image may have several, by several annotators; each structure of it is in one of them.
        """
        every = self.labels(latest=False)
        with self._database.read() as session:
            return reviews.chosen(every, reviews.states_of_review(session))

    def labelled_ids(self, tag: str = FINAL) -> set[CaseId]:
        """The images that have a label of this tag."""
        statement = select(LabelRow.image_id).where(LabelRow.tag == tag, LabelRow.withdrawn_at.is_(None))
        with self._database.read() as session:
            return set(session.scalars(statement))

    def labels_since_last_training(self) -> int:
        """How many images have a label that training takes and that no run which ended well has looked at.

        Images that are quarantined or gone from the datastore do not count: nothing can be learnt from them.
        """
        with self._database.read() as session:  # asked every second, and mostly nothing has changed
            state = events.last_of(session, events.ABOUT_LABELS), runs.done_runs(session)
            known = self._new_labels
            if known is not None and known[0] == state:
                return known[1]
            usable, looked_at = runs.usable_images(session), runs.labels_looked_at(session)
        new = {
            label.image_id
            for label in self.training_labels()
            if label.id not in looked_at and label.image_id in usable
        }
        self._new_labels = (state, len(new))
        return len(new)

    # ---------------------------------------------------------------- training

    def start_run(self, label_ids: Iterable[int], *, pid: int | None = None) -> RunRecord:
        """A new training run over these label versions (all that it looks at, those it holds out too).

        A run whose process is gone is marked failed first and does not count.

        Args:
            label_ids: ids of label versions.
            pid: the process that trains; this one where not given.

        Raises:
            BusyError: a run is running.
            NotFoundError: a label id that does not exist.
        """
        with self._database.write() as session:
            row = runs.start(session, label_ids, pid=os.getpid() if pid is None else pid, now=self._clock())
            return runs.record(session, row)

    def heartbeat(self, run_id: int, steps: int) -> None:
        """Says that the run is alive and how many steps it has taken.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: it has ended, for example because it was stopped: the trainer should end too.
        """
        with self._database.write() as session:
            row = runs.running_by_id(session, run_id)
            row.steps, row.heartbeat_at = steps, self._clock()

    def finish_run(
        self,
        run_id: int,
        *,
        version: str | None = None,
        steps: int | None = None,
        reason: str | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """The run, ended well: its labels are no longer new, whether its version was published or refused.

        Raises:
            NotFoundError: there is no such run.
            ConflictError: it has ended before.
        """
        return self._end_run(run_id, runs.RunEnd(RunState.DONE, reason, version, steps, report))

    def fail_run(self, run_id: int, reason: str) -> RunRecord:
        """The run, ended by an error: its labels stay new. Raises as `finish_run`."""
        return self._end_run(run_id, runs.RunEnd(RunState.FAILED, reason))

    def stop_run(
        self, run_id: int, reason: str = "stopped on request", *, steps: int | None = None
    ) -> RunRecord:
        """The run, ended on request: its labels stay new. Raises as `finish_run`."""
        return self._end_run(run_id, runs.RunEnd(RunState.STOPPED, reason, steps=steps))

    def _end_run(self, run_id: int, how: runs.RunEnd) -> RunRecord:
        with self._database.write() as session:
            return runs.record(session, runs.end(session, run_id, how, now=self._clock()))

    def current_run(self) -> RunRecord | None:
        """The run that is running; one whose process is gone is marked failed and not given."""
        with self._database.write() as session:
            runs.reap(session, self._clock())
            row = runs.running_row(session)
            return None if row is None else runs.record(session, row)

    def runs(self) -> list[RunRecord]:
        """All training runs, the first one first."""
        with self._database.read() as session:
            return [runs.record(session, row) for row in session.scalars(select(RunRow).order_by(RunRow.id))]

    # ---------------------------------------------------------------- versions

    def record_version(
        self,
        name: str,
        path: str | Path,
        *,
        parent: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        state: VersionState = VersionState.CANDIDATE,
    ) -> VersionRecord:
        """A new version of the model.

        Raises:
            ConflictError: the name is taken; versions do not change.
        """
        with self._database.write() as session:
            return versions.add(
                session, name, path, parent=parent, metrics=metrics, state=state, now=self._clock()
            )

    def set_version_state(
        self, name: str, state: VersionState, metrics: Mapping[str, Any] | None = None
    ) -> VersionRecord:
        """The version with its new state, and with ``metrics`` added to what was measured.

        Raises:
            NotFoundError: there is no such version.
        """
        with self._database.write() as session:
            return versions.change(session, name, state, metrics, now=self._clock())

    def versions(self) -> list[VersionRecord]:
        """All versions of the model, the first one first."""
        with self._database.read() as session:
            return versions.listed(session)

    # ------------------------------------------------------------------ scores

    def put_scores(self, method: str, model_version: str, scores: Iterable[Score]) -> None:
        """Keeps scores, in place of earlier ones of the same method, version, image and structure.

        Raises:
            BadRequestError: a value that is not a finite number.
            NotFoundError: a score of an image that the campaign does not have.
        """
        values = scoring.columns(method, model_version, scores, now=self._clock())
        with self._database.write() as session:
            scoring.put(session, method, model_version, values, now=self._clock())

    def get_scores(self, method: str, model_version: str) -> dict[CaseId, dict[StructureName, float]]:
        """Image -> structure ("" for the image as a whole) -> value; images without a score are not in it."""
        with self._database.read() as session:
            return scoring.of(session, method, model_version)

    # ------------------------------------------------------------------ events

    def log_event(self, kind: str, payload: Mapping[str, Any] | None = None) -> Event:
        """Notes that something happened; ``payload`` is JSON and holds no patient's identifiers."""
        with self._database.write() as session:
            row = EventRow(at=self._clock(), kind=kind, payload=dict(payload or {}))
            session.add(row)
            session.flush()
            return Event(row.id, row.at, row.kind, row.payload)

    def rounds_done(self) -> int:
        """How many trainings have ended well."""
        with self._database.read() as session:
            return runs.done_runs(session)

    def board(self) -> Board:
        """A new picture of the images' states, which follows the database."""
        return Board(self._database, self._clock)

    def now(self) -> float:
        """Seconds since 1970 (UTC) by the campaign's clock."""
        return self._clock()

    def events(self, kind: str | None = None, *, after_id: int = 0) -> list[Event]:
        """What happened after the event ``after_id``, the first one first."""
        statement = select(EventRow).where(EventRow.id > after_id).order_by(EventRow.id)
        if kind is not None:
            statement = statement.where(EventRow.kind == kind)
        with self._database.read() as session:
            return [Event(row.id, row.at, row.kind, row.payload) for row in session.scalars(statement)]

    # ------------------------------------------------------------------ counts

    def counts(self) -> Counts:
        """How far the campaign is; images that the datastore lost do not count as images."""
        new_labels = self.labels_since_last_training()
        with self._database.read() as session:
            return count_all(session, new_labels=new_labels)
