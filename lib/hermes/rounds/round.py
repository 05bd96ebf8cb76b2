"""One training round: labels in, a candidate out, and the gate's word on it.

Runs in a process of its own. Only the database, the versions and the progress file are shared with the server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from hermes.campaign.records import VersionState
from hermes.checkpoint import Manifest, UsedCase, code_version, load_checkpoint, save_checkpoint
from hermes.device import choose_device
from hermes.errors import BusyError, CancelledError, HermesError, NothingToTrainError
from hermes.model import UniversalNetwork
from hermes.publish import Serving
from hermes.rounds.cases import (
    NOTHING_NEW,
    CaseReader,
    require_cases,
    require_labels,
    sort_labels,
    without_held_out,
)
from hermes.rounds.gate import REFUSED, UNGATED, UNGATED_REASON, Verdict, judge
from hermes.rounds.lineage import Lineage
from hermes.rounds.measuring import Holdout
from hermes.rounds.options import RoundOptions
from hermes.rounds.preflight import check_cases
from hermes.rounds.recipe import by_rarity, by_use, choose_recipe, window_of
from hermes.rounds.report import RoundReport
from hermes.rounds.rows import add_rows
from hermes.rounds.teachers import (
    Teaching,
    choose_teachers,
    learned_in,
    taught_rows,
    teaching_cases,
    trained_rows,
)
from hermes.rounds.watching import watched
from hermes.training.cases import TrainingCase, taught_cases
from hermes.training.preflight import LeftOut
from hermes.training.resume import ResumePoint, discard, fingerprint
from hermes.training.trainer import Recipe, StepReport, TrainingResult, train
from hermes.types import CaseId
from hermes.workspace import Bindings, Workspace

logger = logging.getLogger(__name__)

ImagePath = Callable[[CaseId], Path]
PROGRESS_EVERY_S = 1.0
_LAST_LOSSES = 20  # of which the mean is called the final loss


def run_round(
    workspace: Workspace,
    image_path: ImagePath,
    *,
    options: RoundOptions | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RoundReport:
    """Train on the campaign's labels, measure the result on the hold-out, and publish it unless it is worse.

    A round that was interrupted goes on where it was, if nothing that it depends on has changed since.

    Args:
        workspace: the campaign.
        image_path: id of an image -> its file.
        options: what is chosen for this round; None: what the settings say.
        should_stop: asked often; None: whether somebody made the workspace's stop request.

    Raises:
        NothingToTrainError: no usable label, or a requested structure that occurs in no case.
        BusyError: another process trains this campaign.
        CancelledError: asked to stop; what was trained is kept for the next round.
    """
    lock = filelock.FileLock(workspace.directory / "training.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        msg = "Another process trains this campaign. Wait for it, or stop it with DELETE /train/."
        raise BusyError(msg) from error
    try:
        chosen = options or RoundOptions.of(workspace.settings)
        return _Round(workspace, image_path, chosen, should_stop or workspace.stop.made).run()
    finally:
        lock.release()


@dataclass(frozen=True)
class _Start:
    """What a round begins with: the version that answers, and the labels in the rows of its network.

    ``keep``: learned rows that are not to be forgotten, as far as images can keep them.
    """

    serving: Serving
    manifest: Manifest
    bindings: Bindings
    net: UniversalNetwork
    new_rows: tuple[int, ...]
    cases: list[TrainingCase]
    skipped: list[LeftOut]
    rehearsed: tuple[int, ...]
    keep: frozenset[int]

    @property
    def annotated(self) -> frozenset[int]:
        """Rows that a case has a label of."""
        return frozenset(row for case in self.cases for row in case.annotated)

    @property
    def unlearned(self) -> frozenset[int]:
        """Those that the serving version has not learned."""
        return self.annotated - self.manifest.learned_rows

    @property
    def may_be_forgotten(self) -> tuple[int, ...]:
        """Rows to keep that a case may be asked for and does not teach, or that are rehearsed."""
        untaught = {
            row
            for case in self.cases
            for row in (self.keep if case.covered is None else self.keep.intersection(case.covered))
            if row not in case.annotated
        }
        return tuple(sorted(untaught.union(self.rehearsed)))


class _Round:
    """The state of one run, so that the steps of `run` read as a list."""

    def __init__(
        self,
        workspace: Workspace,
        image_path: ImagePath,
        options: RoundOptions,
        should_stop: Callable[[], bool],
    ) -> None:
        self._workspace, self._image_path, self._should_stop = workspace, image_path, should_stop
        self._settings, self._options = workspace.settings, options
        self._device = choose_device(self._settings.device)
        self._labels = sort_labels(workspace)
        self._run_id, self._step, self._spoke = 0, 0, 0.0

    def run(self) -> RoundReport:
        require_labels(self._workspace)
        campaign = self._workspace.campaign
        looked_at = (*self._labels.training, *self._labels.holdout)
        self._run_id = campaign.start_run([label.id for label in looked_at]).id
        self._progress("preparing")
        # The progress file always has the end before the database has it; `HermesTrainTask.stats` relies on that.
        try:
            report = self._train_and_judge()
        except CancelledError as error:
            self._workspace.stop.clear()
            self._progress("stopped", step=self._step, reason=str(error))
            campaign.stop_run(self._run_id, str(error), steps=self._step)
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, HermesError) else f"{type(error).__name__}: {error}"
            self._progress("failed", reason=reason)
            campaign.fail_run(self._run_id, reason)
            raise
        self._progress("published" if report.published else "refused", step=report.steps, steps=report.steps,
                       version=report.version, loss=report.final_loss, train_seconds=report.train_seconds,
                       reason=report.verdict.reason, report=report.to_json())  # fmt: skip
        campaign.finish_run(self._run_id, version=report.version, steps=report.steps,
                            reason=None if report.published else report.verdict.reason,
                            report=report.to_json())  # fmt: skip
        return report

    def _train_and_judge(self) -> RoundReport:
        if self._settings.training_threads is not None:
            torch.set_num_threads(self._settings.training_threads)
        start = self._start()
        found = check_cases(start.cases, start.skipped, start.bindings, self._options.structures)
        recipe = self._recipe(start)
        teachers = self._teachers(start, recipe)
        seed = self._settings.seed + len(self._workspace.versions.names())
        resume = ResumePoint(
            self._workspace.training_state, self._key(start, recipe, seed, teachers), keep=True
        )
        cases = teaching_cases(start.cases, recipe)
        logger.info("Training on %d cases, %s", len(cases), recipe)
        with watched(self._workspace, self._run_id, recipe) as monitor:
            result = train(
                start.net, cases, recipe, device=self._device, seed=seed, on_step=self._on_step,
                should_stop=self._should_stop, resume=resume, monitor=monitor,
                row_groups=start.bindings.all_rows(), teachers=[(one.net, one.rows) for one in teachers],
            )  # fmt: skip
        self._step = result.steps
        assert isinstance(result.net, UniversalNetwork)  # what went in comes out
        net = result.net
        manifest = self._manifest(start, recipe, seed, net)
        verdict, measured, unmeasured = self._judge(start, net, manifest)
        verdict = self._unless_moved(start, verdict)
        report = RoundReport(
            manifest.version, start.serving.name, verdict, len(cases), len(self._labels.holdout),
            result.steps, result.seconds, _final_loss(result), (*start.skipped, *unmeasured), self._options.mode, found.to_json(),
        )  # fmt: skip
        self._keep(net, replace(manifest, held_out=measured), report)
        discard(resume)
        return report

    # --------------------------------------------------------------- beginning

    def _start(self) -> _Start:
        serving, net, manifest = self._workspace.load_serving()
        bindings = self._workspace.bind(manifest)
        confirmed = self._workspace.campaign.confirmed.all()
        new_rows = add_rows(net, bindings.space, confirmed, seed=self._settings.seed)
        reader = CaseReader(self._workspace, manifest, bindings, self._image_path)
        lineage = Lineage.of(self._workspace.versions, serving, manifest)
        valid = {(label.id, label.sha256) for label in self._labels.training}
        earlier = {number for number, _ in valid & lineage.labels} if self._options.replay != 1 else set()
        labels = [label for label in self._labels.training if self._options.replay or label.id not in earlier]
        if not labels:
            msg = (
                "Expected a label that the serving version was not trained on: replay 0 leaves out the others. "
                "Label an image, or set replay."
            )
            raise NothingToTrainError(msg)
        cases, skipped = reader.read_all(labels, earlier=earlier, should_stop=self._should_stop)
        cases, copies = without_held_out(cases, self._labels.holdout, self._workspace, self._image_path)
        skipped = [*skipped, *copies]
        require_cases(cases, skipped)
        rehearsed = lineage.rehearsed(cases, valid)
        keep = manifest.learned_rows
        if self._options.keep == "all":
            cases = [replace(case, covered=None) for case in cases]
        else:
            keep &= {row for case in cases for row in bindings.rows_in(case.modality).values()}
        if self._options.distil > 0:
            cases = by_use(cases, rehearsed)
        start = _Start(serving, manifest, bindings, net, new_rows, cases, skipped, rehearsed, keep)
        trained = start.unlearned if self._options.mode == "priors" else start.annotated
        return replace(start, cases=by_rarity(cases, trained))

    def _recipe(self, start: _Start) -> Recipe:
        recipe = choose_recipe(
            self._settings, start.cases, self._device, steps=self._options.steps, window=start.manifest.window,
            replay=self._options.replay, distil=self._options.distil if start.may_be_forgotten else 0.0,
            rehearsed_rows=start.rehearsed,
        )  # fmt: skip
        if self._options.mode != "priors":
            return replace(recipe, trainable="decoder" if self._options.mode == "decoder" else "all")
        if not start.unlearned:
            raise NothingToTrainError(NOTHING_NEW)
        priors = recipe.priors_only(sorted(start.unlearned))
        return replace(
            priors,
            steps=self._options.steps or priors.steps,
            learning_rate=self._settings.learning_rate or priors.learning_rate,
        )

    def _teachers(self, start: _Start, recipe: Recipe) -> list[Teaching]:
        """The versions that the round learns from beside the labels, where it wants to."""
        if recipe.distil_weight <= 0:
            return []
        teachers = choose_teachers(
            self._workspace.versions, start.serving, start.manifest, start.may_be_forgotten,
            taught_rows(start.cases, recipe),
        )  # fmt: skip
        logger.info("Teachers: %s", {one.version: len(one.rows) for one in teachers})
        return teachers

    def _key(self, start: _Start, recipe: Recipe, seed: int, teachers: Sequence[Teaching]) -> str:
        """Names everything that the result depends on: a state of another key is not gone on with."""
        used = {case.case_id for case in start.cases}
        labels = [
            [lb.id, lb.sha256, lb.image_id, sorted(lb.annotated)]
            for lb in self._labels.training
            if lb.image_id in used
        ]
        return fingerprint(
            parent=start.manifest.sha256, labels=labels, rows=sorted(start.bindings.all_rows().items()), recipe=recipe,
            seed=seed, options=self._options, code=code_version(), device=self._device.type,
            preparation=self._workspace.preparation(start.manifest).to_json(),
            teachers=[(one.version, one.rows) for one in teachers],
        )  # fmt: skip

    # -------------------------------------------------------------------- end

    def _manifest(self, start: _Start, recipe: Recipe, seed: int, net: UniversalNetwork) -> Manifest:
        trained = trained_rows(start.cases, recipe)
        return Manifest(
            network=net.config,
            label_space=start.bindings.space,
            preparation=self._workspace.preparation(start.manifest),
            window=window_of(recipe.patch, self._device),
            version=self._workspace.versions.new_name(_digest(net)),
            parent=start.serving.name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            trained_on=taught_cases(start.cases, trained),
            trained_rows=tuple(sorted(start.manifest.learned_rows | trained)),
            learned_in=learned_in(start.serving, start.manifest, taught_rows(start.cases, recipe)),
            settings=self._options.within(self._settings).to_conf(),
            seed=seed,
            code_version=code_version(),
        )

    def _judge(
        self, start: _Start, net: UniversalNetwork, manifest: Manifest
    ) -> tuple[Verdict, tuple[UsedCase, ...], list[LeftOut]]:
        """The gate's word on the candidate, the held-out labels it was measured on and those that could not be used."""
        if not self._labels.holdout:
            return Verdict(UNGATED, UNGATED_REASON), (), []
        device, workspace = self._device, self._workspace
        holdout = Holdout(
            workspace, self._labels.holdout, self._image_path, self._should_stop,
            lambda done, total: self._progress("evaluating", step=done, steps=total),
        )  # fmt: skip
        after, skipped = holdout.measure(
            manifest.version, manifest,
            lambda: workspace.predictor(net.to(device), manifest, device=device, version=manifest.version),
        )  # fmt: skip
        net.cpu()

        def serving() -> Any:
            old, _ = load_checkpoint(start.serving.directory, device)
            return workspace.predictor(old, start.manifest, device=device, version=start.serving.name)

        # The name of a base is that of a folder, which may hold other weights some day.
        ours = start.serving.name in workspace.versions.names()
        name = start.serving.name if ours else f"{start.serving.name}:{start.manifest.sha256[:16]}"
        before, _ = holdout.measure(name, start.manifest, serving)
        verdict = judge(
            before, after, task_margin=self._settings.gate_task_margin, margin=self._settings.gate_margin
        )
        return verdict, holdout.measured(after), skipped

    def _unless_moved(self, start: _Start, verdict: Verdict) -> Verdict:
        """The verdict; refused where somebody has published or withdrawn a version meanwhile."""
        now = self._workspace.versions.serving().name
        if now == start.serving.name:
            return verdict
        reason = f"While it was trained from {start.serving.name}, {now} was made to answer."
        return replace(verdict, state=REFUSED, reason=reason)

    def _keep(self, net: UniversalNetwork, manifest: Manifest, report: RoundReport) -> None:
        """Store the candidate with its report, and let it answer if the gate let it pass."""
        self._progress("publishing", step=report.steps, steps=report.steps)
        workspace, campaign = self._workspace, self._workspace.campaign
        metrics = {"final_loss": report.final_loss, "steps": report.steps, "report": report.to_json()}
        path = workspace.versions.directory / manifest.version
        save_checkpoint(path, net, replace(manifest, metrics=metrics))
        known = {version.name for version in campaign.versions()}
        campaign.record_version(
            manifest.version, path=path.relative_to(workspace.directory).as_posix(),  # a campaign can be moved
            parent=manifest.parent if manifest.parent in known else None,
            metrics=metrics, state=VersionState.CANDIDATE,
        )  # fmt: skip
        if report.published:
            workspace.publish(manifest.version)
            return
        campaign.set_version_state(manifest.version, VersionState.REFUSED)
        campaign.log_event("ModelRefused", {"version": manifest.version, "reason": report.verdict.reason})
        logger.warning("Version %s is not published: %s", manifest.version, report.verdict.reason)

    # --------------------------------------------------------------- progress

    def _on_step(self, report: StepReport) -> None:
        self._step = report.step
        if time.monotonic() - self._spoke < PROGRESS_EVERY_S and report.step < report.steps:
            return
        self._spoke = time.monotonic()
        self._workspace.campaign.heartbeat(self._run_id, report.step)
        rate = report.step / max(report.seconds, 1e-9)
        self._progress("training", step=report.step, steps=report.steps, loss=report.loss, rate=rate,
                       eta_s=(report.steps - report.step) / rate, idle_share=report.idle_share)  # fmt: skip

    def _progress(self, phase: str, **more: Any) -> None:
        self._workspace.progress.write(phase=phase, at=time.time(), pid=os.getpid(), run=self._run_id, **more)


def _final_loss(result: TrainingResult) -> float:
    return float(np.mean(result.losses[-_LAST_LOSSES:]))


def _digest(net: torch.nn.Module) -> str:
    """SHA-256 over all weights, hex."""
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
