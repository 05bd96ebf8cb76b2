"""``hermes train``: many datasets from one manifest, offline, into one version (docs/training.md)."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from hermes.cache import VolumeCache
from hermes.campaign.holdout import HoldoutRule, patient_from_name
from hermes.checkpoint import Manifest, UsedCase, code_version, load_checkpoint, save_checkpoint
from hermes.cli.tables import metrics_table, preflight_lines, preflight_table
from hermes.device import choose_device, choose_precision
from hermes.errors import (
    BadImageError,
    BadLabelError,
    BadRequestError,
    BusyError,
    ConflictError,
    UnknownStructureError,
)
from hermes.inference.predictor import Predictor
from hermes.labels.catalogue import canonical_key
from hermes.labels.space import LabelSpace, Task
from hermes.model import DEFAULT_WIDTHS, NetworkConfig, UniversalNetwork, build_network
from hermes.rounds.rows import add_rows
from hermes.scoring.agreement import agreement
from hermes.training.cases import TrainingCase, used_cases
from hermes.training.monitor import MlflowMonitor, Monitors, TensorBoardMonitor
from hermes.training.plan import DatasetPlan, Pair, TrainingPlan, find_pairs, read_plan
from hermes.training.preflight import CaseFacts, require_something, survey
from hermes.training.resume import ResumePoint, fingerprint
from hermes.training.team import Team, team_from_environment
from hermes.training.trainer import Recipe, StepReport, TrainingResult, fit_patch, train
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.reading import read_label_map
from hermes.types import CaseId, Modality

DEFAULT_SPACING_MM = 1.5
T = TypeVar("T")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Wish:
    """What the command line says beside the manifest.

    Attributes:
        out: version directory to write.
        steps: overrides the manifest's.
        resume: go on with an interrupted run.
        device: ``auto``, ``cpu``, ``cuda``, ...
        tensorboard: folder for curves.
        mlflow: folder of an MLflow store.
        dry_run: stop after the pre-flight table.
    """

    out: Path
    steps: int | None = None
    resume: bool = False
    device: str = "auto"
    tensorboard: Path | None = None
    mlflow: Path | None = None
    dry_run: bool = False

    @property
    def work(self) -> Path:
        """Folder beside ``out`` for prepared images and the state of the run."""
        return self.out.with_name(self.out.name + ".work")


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    net: UniversalNetwork
    space: LabelSpace
    preparation: PreparationSpec
    parent: Manifest | None


@dataclass(frozen=True)
class Read:
    """A case that was read: what training sees of it, and what the pre-flight check does."""

    pair: Pair
    facts: CaseFacts
    case: TrainingCase | None


def run(manifest: Path, wish: Wish) -> Manifest | None:
    """Train as the manifest says; the manifest of the new version, None after a dry run.

    Raises:
        ConflictError: the version directory exists.
        BusyError: another process trains for the same directory.
        NothingToTrainError: the pre-flight check found too little.
        CancelledError: stopped by hand; the state is kept for ``--resume``.
        HermesError: the manifest or a file in it is wrong.
    """
    plan = read_plan(manifest)
    _require_new(wish.out)
    with team_from_environment(choose_device(wish.device)) as device, _work_alone(wish):
        _require_new(wish.out)  # the process that had the folder until now may have written it
        console = Console(stderr=True, quiet=not Team.current().leads)
        return _Training(plan, wish, device, console).run()


def _require_new(out: Path) -> None:
    """Nothing, where ``out`` does not exist.

    Raises:
        ConflictError: it does.
    """
    if out.exists():
        msg = f"Expected a new directory for the version, but {str(out)!r} exists. Choose another with -o."
        raise ConflictError(msg)


@contextmanager
def _work_alone(wish: Wish) -> Iterator[None]:
    """The work folder, for this process and its team alone.

    Raises:
        BusyError: another process has it.
    """
    if not Team.current().leads:
        yield
        return
    wish.work.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(wish.work / "training.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        msg = (
            f"Expected {str(wish.work)!r} for this training alone, but another `hermes train` works in it. "
            f"Wait for it, or choose another directory with -o."
        )
        raise BusyError(msg) from error
    try:
        yield
    finally:
        lock.release()


class _Training:
    """One run of the command, so that its steps read as a list."""

    def __init__(self, plan: TrainingPlan, wish: Wish, device: torch.device, console: Console) -> None:
        self._plan, self._wish, self._device, self._console = plan, wish, device, console
        self._cache = VolumeCache(wish.work / "cache")
        self._start = _begin(plan)
        self._rows = {key_of(d, name): self._start.space.row(_task(d, name)) for d, name in _named(plan)}

    def run(self) -> Manifest | None:
        training, held_out = _hold_out(self._plan, find_pairs(self._plan), self._cache.content_sha256)
        read = list(self._progress(training, "preparing", self._read))
        measuring = list(self._progress(held_out, "preparing the hold-out", self._read))
        report, holdout = (
            survey([one.facts for one in found], list(self._rows)) for found in (read, measuring)
        )
        self._console.print(preflight_table(report))
        self._say(preflight_lines(report, holdout))
        require_something(report)
        if self._wish.dry_run:
            return None
        cases = [one.case for one in read if one.case is not None and one.case.case_id in set(report.used)]
        recipe = self._recipe(cases)
        result = self._train(cases, recipe)
        usable = [one for one in measuring if one.pair.case_id in set(holdout.used)]
        return self._finish(result, recipe, cases, usable) if Team.current().leads else None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _progress(self, items: Sequence[T], what: str, work: Callable[[T], Done]) -> Iterator[Done]:
        with Progress(console=self._console, disable=not self._console.is_terminal) as bar:
            for item in bar.track(items, description=what):
                yield work(item)

    def _read(self, pair: Pair) -> Read:
        try:
            case, facts = self._case(pair)
        except (BadImageError, BadLabelError) as error:
            return Read(pair, CaseFacts(pair.case_id, problem=str(error)), None)
        return Read(pair, facts, case)

    def _case(self, pair: Pair) -> tuple[TrainingCase, CaseFacts]:
        """The case on the model grid, arrays left on disk.

        Raises:
            BadImageError: the image cannot be used.
            BadLabelError: the label is missing, or has values without a name or of another name.
        """
        if pair.label is None:
            msg = f"no label file {pair.dataset.labels!r} of this name"
            raise BadLabelError(msg)
        dataset = pair.dataset
        prepared = self._cache.prepared(
            pair.image, self._start.preparation, modality=dataset.modality, lazy=True
        )
        labels = self._cache.prepared_labels(pair.label, prepared.record, lazy=True)
        if pair.label.name.lower().endswith(".nrrd"):  # the one format that names its values
            _check_names(dataset, read_label_map(pair.label).names)
        values, counts = np.unique(np.asarray(labels[:, :, :]), return_counts=True)
        drawn = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}
        nameless = sorted(set(drawn) - set(dataset.structures))
        if nameless:
            msg = f"voxels of value {nameless}, which the manifest does not name"
            raise BadLabelError(msg)
        annotated: dict[int, int | None] = {}
        for value, name in dataset.structures.items():
            if value in drawn:
                annotated[self._rows[key_of(dataset, name)]] = value
            elif name in dataset.absent:
                annotated[self._rows[key_of(dataset, name)]] = None
        facts = CaseFacts(
            pair.case_id,
            {key_of(dataset, name): drawn.get(value, 0) for value, name in dataset.structures.items()},
            frozenset(key_of(dataset, n) for v, n in dataset.structures.items() if n in dataset.absent and v not in drawn),
        )  # fmt: skip
        content = self._cache.content_sha256
        source = UsedCase(pair.case_id, content(pair.image), content(pair.label))
        case = TrainingCase(
            CaseId(pair.case_id),
            prepared.array,
            labels,
            annotated,
            prepared.record.modality,
            dataset.name,
            source,
        )
        return case, facts

    def _recipe(self, cases: Sequence[TrainingCase]) -> Recipe:
        plan, gpu = self._plan, self._device.type == "cuda"
        recipe = Recipe.for_gpu() if gpu else Recipe.for_cpu()
        largest = 128 if gpu else 64
        recipe = replace(
            recipe,
            batch_size=plan.batch_size,
            patch=plan.patch or fit_patch([case.image.shape for case in cases], largest=largest),
            learning_rate=plan.learning_rate or recipe.learning_rate,
            precision=choose_precision("auto", self._device),
            dataset_weights={d.name: d.weight for d in plan.datasets},
        )
        return replace(recipe, steps=self._wish.steps or plan.steps or recipe.steps_for(len(cases)))

    def _train(self, cases: Sequence[TrainingCase], recipe: Recipe) -> TrainingResult:
        point = self._resume_point(cases, recipe)
        monitors: list[Any] = []
        if self._wish.tensorboard is not None and Team.current().leads:
            monitors.append(TensorBoardMonitor(self._wish.tensorboard))
        if self._wish.mlflow is not None and Team.current().leads:
            monitors.append(MlflowMonitor(self._wish.mlflow, run_name=self._wish.out.name))
        bar = Progress(console=self._console, disable=not self._console.is_terminal)
        task = bar.add_task("training", total=recipe.steps)

        def on_step(report: StepReport) -> None:
            bar.update(task, completed=report.step, description=f"training, loss {report.loss:.3f}")

        try:
            with bar, _stop_by_hand() as asked:
                return train(
                    self._start.net, cases, recipe, device=self._device, seed=self._plan.seed, on_step=on_step,
                    should_stop=asked, resume=point, monitor=Monitors(monitors) if monitors else None,
                    row_groups={row: key for key, row in self._rows.items()},
                )  # fmt: skip
        finally:
            for monitor in monitors:
                monitor.close()

    def _resume_point(self, cases: Sequence[TrainingCase], recipe: Recipe) -> ResumePoint:
        key = fingerprint(
            plan=self._plan.to_json(), recipe=recipe, seed=self._plan.seed, code=code_version(),
            parent=self._start.parent.sha256 if self._start.parent else None,
            cases=[[case.source, {str(r): v for r, v in case.annotated.items()}] for case in cases],
        )  # fmt: skip
        point = ResumePoint(self._wish.work / "training.state", key, keep=True)
        if not self._wish.resume and Team.current().leads:
            point.path.unlink(missing_ok=True)
        return point

    def _finish(
        self, result: TrainingResult, recipe: Recipe, cases: Sequence[TrainingCase], held_out: Sequence[Read]
    ) -> Manifest:
        net = result.net
        assert isinstance(net, UniversalNetwork)  # what went in comes out
        start, plan = self._start, self._plan
        rows = sorted({row for case in cases for row in case.annotated})
        learned = rows if start.parent is None else sorted(start.parent.learned_rows | set(rows))
        manifest = Manifest(
            network=net.config,
            label_space=start.space,
            preparation=start.preparation,
            window=(128, 128, 128) if self._device.type == "cuda" else recipe.patch,
            version=self._wish.out.name,
            parent=start.parent.version if start.parent else None,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            trained_on=used_cases(cases),
            trained_rows=tuple(learned),
            settings={**plan.to_json(), "steps": recipe.steps, "patch": list(recipe.patch)},
            seed=plan.seed,
            code_version=code_version(),
        )
        predictor = Predictor(net.to(self._device), manifest, device=self._device, cache=self._cache)
        scores, measured = self._measure(predictor, held_out)
        self._console.print(metrics_table(scores))
        metrics = {
            "final_loss": float(np.mean(result.losses[-20:])),
            "steps": result.steps,
            "train_seconds": round(result.seconds, 1),
            "idle_share": round(result.idle_share, 4),
            "dice_on_held_out": {name: float(np.mean(found)) for name, found in scores.items()},
        }
        stored = save_checkpoint(
            self._wish.out, net, replace(manifest, metrics=metrics, held_out=used_cases(measured))
        )
        (self._wish.work / "training.state").unlink(missing_ok=True)
        return stored

    def _measure(
        self, predictor: Predictor, held_out: Sequence[Read]
    ) -> tuple[dict[str, list[float]], list[TrainingCase]]:
        """Dice of the held-out cases by task, and those that were measured; one whose files have gone is named."""

        def score(one: Read) -> dict[str, float]:
            pair, facts = one.pair, one.facts
            assert pair.label is not None  # it was read
            names = {value: key_of(pair.dataset, name) for value, name in pair.dataset.structures.items()}
            asked = [n for n in names.values() if facts.voxels[n] or n in facts.absent]
            try:
                found = predictor.predict(
                    pair.image, {n: self._rows[n] for n in names.values()}, modality=pair.dataset.modality
                )
                return agreement(found.label_map, replace(read_label_map(pair.label), names=names), asked)
            except (BadImageError, BadLabelError, OSError) as error:  # the training must not be lost by that
                self._say(f"left out of the hold-out: {pair.case_id}: {error}")
                return {}

        scores: dict[str, list[float]] = {}
        measured: list[TrainingCase] = []
        for one, found in zip(held_out, self._progress(held_out, "measuring", score), strict=True):
            measured += [one.case] if found and one.case is not None else []
            for name, value in found.items():
                scores.setdefault(name, []).append(value)
        return scores, measured


def key_of(dataset: DatasetPlan, structure: str) -> str:
    """``structure@dataset``, as tasks are named."""
    return _task(dataset, structure).key


def _task(dataset: DatasetPlan, structure: str) -> Task:
    modalities: tuple[Modality, ...] = () if dataset.modality is None else (dataset.modality,)
    return Task(structure, dataset.name, modalities)


def _named(plan: TrainingPlan) -> Iterator[tuple[DatasetPlan, str]]:
    return ((dataset, name) for dataset in plan.datasets for name in dataset.structures.values())


def _check_names(dataset: DatasetPlan, names: Mapping[int, str]) -> None:
    """Nothing, where the names that the label file itself carries are those of the manifest.

    Raises:
        BadLabelError: they are not: a value alone does not say what was drawn.
    """
    for value, name in names.items():
        ours = dataset.structures.get(value)
        if ours is not None and canonical_key(ours) != canonical_key(name):
            msg = f"the file calls value {value} {name!r}, the manifest {ours!r}"
            raise BadLabelError(msg)


def _begin(plan: TrainingPlan) -> Start:
    """The network that training starts from, with a row for every task of the plan."""
    tasks = [_task(dataset, name) for dataset, name in _named(plan)]
    torch.manual_seed(plan.seed)
    if plan.start is None:
        spec = PreparationSpec(spacing_mm=plan.spacing_mm or DEFAULT_SPACING_MM)
        space = LabelSpace(tuple(tasks))
        if plan.network not in DEFAULT_WIDTHS:
            msg = f"Expected a network out of {sorted(DEFAULT_WIDTHS)}, got {plan.network!r}."
            raise BadRequestError(msg)
        width = plan.width or DEFAULT_WIDTHS[plan.network]
        config = NetworkConfig(plan.network, width, tasks=len(space), modalities=len(Modality))
        return Start(build_network(config), space, spec, None)
    net, parent = load_checkpoint(plan.start)
    space = parent.label_space
    for task in tasks:
        try:
            space.row(task)
        except UnknownStructureError:
            space = space.append(task)
    add_rows(net, space, (), seed=plan.seed)
    spec = (
        parent.preparation
        if plan.spacing_mm is None
        else replace(parent.preparation, spacing_mm=plan.spacing_mm)
    )
    return Start(net, space, spec, parent)


def _hold_out(
    plan: TrainingPlan, pairs: Sequence[Pair], content: Callable[[Path], str]
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs to measure, by patient.

    Args:
        plan: with the rule.
        pairs: of all datasets.
        content: an image's file -> a hash of its bytes.

    Raises:
        BadRequestError: the expression for patients does not fit a name.
    """
    rule = HoldoutRule(share=plan.held_out, seed=plan.seed)
    patients = _united([_patient(plan, pair) for pair in pairs], [content(pair.image) for pair in pairs])
    chosen = [rule.holds_out(patient) for patient in patients]
    training = [pair for pair, out in zip(pairs, chosen, strict=True) if not out]
    return training, [pair for pair, out in zip(pairs, chosen, strict=True) if out]


def _united(patients: Sequence[str], contents: Sequence[str]) -> list[str]:
    """``patients``, where those of whom two images have one content are one, called by the smallest name.

    >>> _united(["b", "a", "c", "c"], ["image 1", "image 2", "image 1", "image 2"])
    ['a', 'a', 'a', 'a']
    """
    smaller = {
        patient: patient for patient in patients
    }  # a name -> one that is not larger, of the same patient

    def smallest(patient: str) -> str:
        while smaller[patient] != patient:
            patient = smaller[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, content in zip(patients, contents, strict=True):
        low, high = sorted((smallest(patient), smallest(owner.setdefault(content, patient))))
        smaller[high] = low
    return [smallest(patient) for patient in patients]


def _patient(plan: TrainingPlan, pair: Pair) -> str:
    if plan.patient is None:
        return patient_from_name(CaseId(pair.name))  # in whichever dataset
    found = re.search(plan.patient, pair.name)
    patient = found and found.group(1)  # None also where the group may be left out
    if not patient:
        msg = f"Expected `patient` with a group that fits every name; {plan.patient!r} does not fit {pair.name!r}."
        raise BadRequestError(msg)
    return str(patient)


@contextmanager
def _stop_by_hand() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed once: training ends after the step; pressed again, at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
