"""From ``--conf`` to everything that the app registers."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings as monai_settings
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from hermes.adapters import training_guard
from hermes.adapters.datastore import HermesLocalDatastore
from hermes.adapters.dicomweb.pacs import Pacs, access_of
from hermes.adapters.images import paths_of
from hermes.adapters.infer import HermesInferTask, offered_groups
from hermes.adapters.patients import Patients
from hermes.adapters.prelabel import Prelabeller
from hermes.adapters.requests import annotator_of, refuse_unknown_options, round_options
from hermes.adapters.scoring import AgreementScoring, UncertaintyScoring
from hermes.adapters.strategy import HermesStrategy
from hermes.adapters.submitting import Intake
from hermes.adapters.supervisor import Supervisor
from hermes.adapters.train import HermesTrainTask
from hermes.campaign.records import LabelRecord
from hermes.checkpoint import WEIGHTS_FILE
from hermes.config import from_conf
from hermes.errors import BadImageError, NotFoundError
from hermes.offered import OfferedLabel, OfferedLabels, agreement_with_offer
from hermes.pool import PoolScorer
from hermes.queueing import Queue
from hermes.records import NewStructure
from hermes.resident import ResidentModel
from hermes.rounds import RoundOptions, preflight_of, require_labels, require_new_structures
from hermes.strategies import STRATEGIES, get_strategy
from hermes.submission import Submission
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

MODEL = "hermes"  # name of the infer task and of the trainer


@dataclass
class Parts:
    """What one app consists of; the methods are what happens between its parts.

    ``labels`` is the list of structures that MONAI Label shows; it grows when a request adds one.
    """

    workspace: Workspace
    resident: ResidentModel
    scorer: PoolScorer
    queue: Queue
    studies: str
    labels: list[str]
    supervisor: Supervisor | None = None
    pacs: Pacs | None = None
    _offered: dict[str, HermesInferTask] = field(default_factory=dict)
    _store: Datastore | None = None

    def record_label(
        self, image_id: str, path: Path, sha256: str, submission: Submission, params: Mapping[str, Any]
    ) -> LabelRecord:
        """Note a submitted label in the database and give its image free."""
        annotator = annotator_of(params)
        offered = params.get("model_version")
        record = self.workspace.campaign.record_label(
            image_id, "final", self.workspace.archive.reference(path), sha256, annotator, submission.annotated,
            offered if isinstance(offered, str) else None, patient=self.patient_of(image_id),
        )  # fmt: skip
        self._compare_with_offer(record, submission)
        return record

    def _compare_with_offer(self, record: LabelRecord, submission: Submission) -> None:
        """Note how well a label agrees with what the model had offered; a failure costs this figure and nothing else."""
        offers = OfferedLabels(self.workspace.directory / "offered")
        image_id, agreements = record.image_id, self.workspace.campaign.agreements
        try:
            made = [*self._prelabels(image_id), *offers.of(image_id)]
            made.sort(key=lambda offer: offer.at)
            found = agreement_with_offer(submission.label_map, list(submission.annotated), made)
            for version, dice in found.items():
                agreements.put_offered(record.id, version, dice)
        except (OSError, ValueError):
            logger.exception("The label %d of %s could not be compared with the offer", record.id, image_id)
        else:
            offers.forget(image_id)

    def _prelabels(self, image_id: str) -> list[OfferedLabel]:
        """The label that the datastore keeps as offered, if a version of this campaign drew it."""
        tag = DefaultLabelTag.ORIGINAL.value
        store = self._store
        if store is None or tag not in store.get_labels_by_image_id(image_id):
            return []
        said = store.get_label_info(image_id, tag).get("params", {})
        path = Path(store.get_label_uri(image_id, tag))
        names, version = said.get("label_names"), said.get("model_version")
        if not isinstance(names, dict) or not isinstance(version, str) or not path.is_file():
            return []
        return [OfferedLabel(path, names, version, path.stat().st_mtime)]

    def record_imported(
        self, image_id: str, path: Path, sha256: str, submission: Submission, annotator: str
    ) -> LabelRecord:
        """Note a label that somebody stored in the PACS."""
        return self.workspace.campaign.record_label(
            image_id, "final", self.workspace.archive.reference(path), sha256, annotator, submission.annotated,
            source="pacs", patient=self.patient_of(image_id),
        )  # fmt: skip

    def patient_of(self, image_id: str) -> str | None:
        """Whose an image is, as far as the datastore knows."""
        return None if self._store is None else Patients(self._store, self.studies)(image_id)

    def add_structures(self, new: Sequence[NewStructure]) -> None:
        """Label further structures from now on, and show them to viewers."""
        self.workspace.add_structures(new)
        self.labels[:] = self.workspace.bindings().structures
        for task in self._offered.values():
            task.refresh()

    def preflight(self, options: RoundOptions) -> dict[str, Any]:
        """What a round with these options would find in the labels.

        Raises:
            NothingToTrainError: it would not begin.
        """
        assert self._store is not None  # `serve` or `datastore` came first
        return preflight_of(self.workspace, paths_of(self._store), options).to_json()

    def datastore(self, studies: str) -> Datastore:
        """The local datastore of ``studies`` with this campaign behind it."""
        store = HermesLocalDatastore(
            studies,
            structures=lambda: self.workspace.bindings().structures,
            confirm=self.add_structures,
            archive=self.workspace.archive,
            record=self.record_label,
            withdraw=self.workspace.campaign.withdraw_label,
            progress=self.workspace.campaign.progress.of,
            auto_reload=monai_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=monai_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )
        self._store = store
        store.restore_copies(self.workspace.campaign.labels())
        return store

    def dicomweb(self, url: str) -> Datastore:
        """The datastore of a PACS with this campaign behind it."""
        intake = Intake(
            structures=lambda: self.workspace.bindings().structures,
            confirm=self.add_structures,
            archive=self.workspace.archive,
            record=self.record_label,
        )
        self.pacs = Pacs(self.workspace, access_of(url), intake, record_imported=self.record_imported)
        self._store = self.pacs.store
        return self.pacs.store

    def infers(self) -> dict[str, Any]:
        """Infer tasks by name: the whole campaign first (viewers preselect it), then its body regions."""
        if not self._offered:
            groups = offered_groups(self.workspace.bindings().structures)
            regions = {f"{MODEL}-{group.lower().replace(' ', '-')}": group for group in groups}
            self._offered = {MODEL: HermesInferTask(self.workspace, self.resident)} | {
                name: HermesInferTask(self.workspace, self.resident, group) for name, group in regions.items()
            }
        return dict(self._offered)

    def trainers(self) -> dict[str, Any]:
        """Trainers by name."""
        return {MODEL: HermesTrainTask(self.workspace)}

    def strategies(self) -> dict[str, Any]:
        """Strategies by name, the campaign's own first: viewers preselect the first."""
        names = sorted(STRATEGIES, key=lambda name: name != self.workspace.settings.strategy)

        def structures() -> tuple[str, ...]:
            return self.workspace.bindings().structures

        return {name: HermesStrategy(get_strategy(name), self.queue, structures) for name in names}

    def scoring_methods(self) -> dict[str, Any]:
        """Scoring methods by name."""
        return {"uncertainty": UncertaintyScoring(self.scorer), "agreement": AgreementScoring()}

    def serve(self, datastore: Datastore, scoring_methods: Mapping[str, Any]) -> None:
        """Begin what only the server process does."""
        self._store = datastore
        self.workspace.note_served()
        Patients(datastore, self.studies).table()  # a table that cannot be read is said now
        training_guard.install(
            training_guard.Hooks(
                check=lambda method, request: self._check(method, request, scoring_methods),
                stop=self.workspace.stop,
                killed=self._note_stop,
                is_running=lambda: self.workspace.campaign.current_run() is not None,
                stats=HermesTrainTask(self.workspace).stats,
                begins=lambda: self.workspace.progress.write(phase="starting", at=time.time()),
            )
        )
        self.supervisor = Supervisor(
            self.workspace,
            datastore,
            self.scorer,
            patient_of=self.patient_of,
            start_training=_start_training,
            is_training=training_guard.is_training,
            prelabeller=Prelabeller(self.workspace, self.resident, datastore, self.scorer),
        )
        self.resident.predictor()  # a damaged model ends the start, with the reason
        self.supervisor.start()
        if self.pacs is not None:
            self.pacs.start(self.label_saved)
        images, structures = len(datastore.list_images()), ", ".join(self.workspace.bindings().structures)
        logger.info("Hermes is ready: %d images, structures: %s", images, structures)

    @contextmanager
    def leaving_out_unreadable(self, image: Any) -> Iterator[None]:
        """An image of the campaign that turns out to be unusable is not offered to anybody any more."""
        try:
            yield
        except HTTPException as error:
            if error.status_code == BadImageError.status and isinstance(image, str):
                with suppress(NotFoundError):  # an upload, or a session's image
                    self.workspace.campaign.quarantine(image, str(error.detail))
            raise

    def label_saved(self) -> None:
        """A label has come in: look whether a round is full."""
        if self.supervisor is not None:
            self.supervisor.wake()

    def exported_weights(self) -> str:
        """Path of a copy of the serving weights, for download; whatever is done to it, the version stays."""
        serving = self.workspace.versions.serving()
        copy = self.workspace.directory / "exports" / f"{serving.name}.safetensors"
        if not copy.is_file():
            copy.parent.mkdir(exist_ok=True)
            partial = copy.with_suffix(f".{threading.get_ident()}.tmp")
            shutil.copy(serving.directory / WEIGHTS_FILE, partial)
            partial.replace(copy)
        return str(copy)

    def _check(self, method: str, request: Mapping[str, Any], scoring_methods: Mapping[str, Any]) -> None:
        known: dict[str, tuple[str, list[str]]] = {
            "train": ("model", [MODEL]),
            "batch_infer": ("model", list(self.infers())),
            "scoring": ("method", list(scoring_methods)),
        }
        key, names = known[method]
        if request.get(key) not in names:
            msg = f"Expected {key!r} to be one of {names}, got {str(request.get(key))[:100]!r}."
            raise NotFoundError(msg)
        if method == "train":
            refuse_unknown_options(request)
            options = round_options(request, self.workspace.settings, self.workspace.bindings().structures)
            require_labels(self.workspace)
            if options.mode == "priors":
                require_new_structures(self.workspace)

    def _note_stop(self) -> None:
        run = self.workspace.campaign.current_run()
        if run is not None:
            reason = "stopped on request, by force"
            self.workspace.progress.write(phase="stopped", run=run.id, step=run.steps, reason=reason)
            self.workspace.campaign.stop_run(run.id, reason)


def _start_training() -> None:
    try:
        _, refusal = training_guard.GuardedTask.run("train", {"model": MODEL})
    except HTTPException as error:  # as with train_mode=priors and nothing new in the labels
        refusal = error.detail
    if refusal:
        logger.warning("The round does not begin: %s", refusal)


def build(app_dir: str, studies: str, conf: Mapping[str, str]) -> Parts:
    """Open the campaign on ``studies`` as ``conf`` says.

    Raises:
        UnknownSettingError: a key that no setting has.
        BadRequestError: a value that cannot be read.
        CheckpointError: the model cannot be read.
    """
    settings = from_conf(conf)
    workspace = Workspace(settings, studies, starter=Path(app_dir) / "starter")
    resident = ResidentModel(workspace)
    scorer = PoolScorer(workspace, resident)
    workspace.wish()  # a required structure that the campaign does not label ends the start
    queue = Queue(
        workspace.campaign,
        lease_s=60 * settings.lease_minutes,
        seed=settings.seed,
        serving_version=lambda: workspace.versions.serving().name,
        wish=workspace.wish,
        quotas=workspace.quotas(),
        facts=scorer.facts,
        order_later=True,
    )
    labels = list(workspace.bindings().structures)
    return Parts(workspace, resident, scorer, queue, studies, labels)
