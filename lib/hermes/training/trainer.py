"""One training run: recipe in, averaged weights out.

The loop is an ignite engine whose iteration is one optimiser step; the batch of a step depends on
(seed, step) only, see ``sampling``. Stopped or killed, it goes on where it was, see ``resume``.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from pytorch_optimizer import Lamb
from torch import nn

from hermes.device import in_fast_layout, keep_freed_memory
from hermes.errors import CancelledError
from hermes.training.backward import batch_loss, choose_backward
from hermes.training.cases import TrainingCase
from hermes.training.distil import Teacher
from hermes.training.ema import WeightAverage
from hermes.training.loading import Loader
from hermes.training.monitor import Monitor, Watch
from hermes.training.recipe import Recipe, fit_patch
from hermes.training.report import StepReport, TrainingResult
from hermes.training.resume import ResumePoint, TrainingState, discard, load_state, save_state
from hermes.training.sampling import Batch, PatchSampler
from hermes.training.team import Team
from hermes.training.trainable import Trainable, trainable_parts

with warnings.catch_warnings():
    # ignite imports parts of torch.distributed that use the deprecated torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ignite.engine import Engine, Events

__all__ = [
    "Recipe",
    "ResumePoint",
    "StepReport",
    "TrainingResult",
    "batch_loss",
    "build_optimiser",
    "fit_patch",
    "train",
]

logger = logging.getLogger(__name__)


def train(
    net: nn.Module,
    cases: Sequence[TrainingCase],
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: ResumePoint | None = None,
    monitor: Monitor | None = None,
    row_groups: Mapping[int, str] | None = None,
    teachers: Sequence[tuple[nn.Module, Sequence[int]]] = (),
) -> TrainingResult:
    """Train ``net`` in place on ``cases`` and return its averaged weights.

    In a ``torch.distributed`` group every process calls this alike; each computes its samples of every batch,
    and the first alone saves, reports and monitors.

    Args:
        net: the network to start from; its own weights are changed.
        cases: labelled images; only annotated tasks of each enter the loss.
        recipe: steps, sizes and rates.
        device: where to train.
        seed: of the patch sampler; initial weights come with ``net``.
        on_step: called after every optimiser step.
        should_stop: asked before every step.
        resume: where the state is kept; a run of the same key goes on from it.
        monitor: is told losses, rates and pictures.
        row_groups: row -> name of its curve in the monitor.
        teachers: earlier versions and the rows that each answers, no row twice: where a case has no annotation of them,
            and of ``recipe.rehearsed_rows`` also where it has, when ``recipe.distil_weight`` is positive. Not changed.

    Raises:
        NothingToTrainError: no case has an annotated task.
        CancelledError: ``should_stop`` said so; the state was saved before.
        BadRequestError: the recipe asks for what the network or the team of processes has not.
    """
    team = Team.current()
    asked = [(old, rows) for old, rows in teachers if rows] if recipe.distil_weight > 0 else []
    with trainable_parts(net.to(device), recipe) as parts:
        sampler = _sampler(cases, recipe, seed, sorted(row for _, rows in asked for row in rows))
        frozen = [(_frozen(old, device), rows) for old, rows in asked]
        learned = Teacher(frozen, recipe.distil_weight) if frozen else None
        run = _Run(net, parts, recipe, device, team, sampler, learned)
        course = _Course(run, resume, monitor, row_groups or {}, on_step)
        return course.follow(should_stop)


def _sampler(
    cases: Sequence[TrainingCase], recipe: Recipe, seed: int, distil_rows: Sequence[int]
) -> PatchSampler:
    return PatchSampler(
        cases,
        patch=recipe.patch,
        batch_size=recipe.batch_size,
        seed=seed,
        augmentation=recipe.augmentation if recipe.augment else None,
        dataset_weights=recipe.dataset_weights,
        distil_rows=distil_rows,
        distil_most=recipe.distil_rows_per_sample,
        rehearsed_rows=recipe.rehearsed_rows if distil_rows else (),
    )


def _frozen(teacher: nn.Module, device: torch.device) -> nn.Module:
    return in_fast_layout(teacher.eval(), device)


class _Run:
    """Network, average, optimiser and sampler of one run."""

    def __init__(
        self, net: nn.Module, parts: Trainable, recipe: Recipe, device: torch.device, team: Team,
        sampler: PatchSampler, teacher: Teacher | None,
    ) -> None:  # fmt: skip
        self.recipe, self.device, self.team, self.sampler, self.parts = recipe, device, team, sampler, parts
        self.share = team.share(recipe.batch_size)
        if device.type == "cpu":
            keep_freed_memory()
        self.net = in_fast_layout(net.train(), device)
        team.same_start(net)
        self._teacher = teacher
        self._backward = choose_backward(device, len(range(recipe.batch_size)[self.share]))
        self._average = WeightAverage(net, decay=recipe.average_decay())
        self._optimiser = build_optimiser(net, recipe)

    def step(self, number: int, batch: Batch) -> float:
        """The loss of optimiser step ``number`` (from 0)."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate_at(number)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._backward(self.net, batch, precision=self.recipe.precision, teacher=self._teacher)
        self.team.sum_gradients(self.parts.parameters)
        self.parts.mask_gradients()
        nn.utils.clip_grad_norm_(self.parts.parameters, self.recipe.max_gradient_norm)
        self._optimiser.step()
        self._average.update(self.net)
        return self.team.sum(loss, self.device)

    def state(self, losses: list[float], seconds: float) -> TrainingState:
        """All that the next step depends on."""
        return TrainingState(
            step=len(losses),
            steps=self.recipe.steps,
            seconds=seconds,
            losses=losses,
            net=self.net.state_dict(),
            average=self._average.average.state_dict(),
            updates=self._average.updates,
            optimiser=self._optimiser.state_dict(),
        )

    def restore(self, state: TrainingState) -> None:
        """Go back to what ``state`` was taken of."""
        self.net.load_state_dict(state.net)
        self._average.average.load_state_dict(state.average)
        self._average.updates = state.updates
        self._optimiser.load_state_dict(dict(state.optimiser))

    def averaged(self) -> nn.Module:
        """The averaged network, in the default memory layout, ready to answer or to be trained further."""
        net = self._average.average.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return net.eval().requires_grad_(True)  # type: ignore[no-any-return]


class _Course:
    """The steps of a run, one after the other, with all that happens between them."""

    def __init__(
        self, run: _Run, resume: ResumePoint | None, monitor: Monitor | None, groups: Mapping[int, str],
        on_step: Callable[[StepReport], None] | None,
    ) -> None:  # fmt: skip
        leads = run.team.leads
        self._run, self._resume = run, resume
        self._on_step = on_step if leads else None
        self._watch = Watch(monitor, groups) if monitor is not None and leads else None
        self._losses: list[float] = []
        self._before_s = 0.0
        if resume is not None:
            self._restore(resume)
        self._resumed_at = len(self._losses)
        self._started = self._saved = time.monotonic()
        self._took_s = 0.0

    def follow(self, should_stop: Callable[[], bool] | None) -> TrainingResult:
        """All steps that are left."""
        run = self._run
        steps = range(self._resumed_at, run.recipe.steps)
        loader = Loader(run.sampler, steps, device=run.device, share=run.share)

        def one_step(_: Engine, number: int) -> float:
            if run.team.any(should_stop is not None and should_stop(), run.device):
                self._save()
                msg = f"Training was stopped on request after {number} of {run.recipe.steps} steps."
                raise CancelledError(msg)
            batch = loader.next()
            loss = run.step(number, batch)
            self._losses.append(loss)
            self._after(number, batch, loader.waited_s)
            return loss

        engine = Engine(one_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_in_time)
        try:
            if steps:
                engine.run(steps, max_epochs=1)
        finally:
            loader.close()
        return self._result(loader.waited_s)

    def _after(self, number: int, batch: Batch, waited_s: float) -> None:
        if self._on_step is None and self._watch is None:
            return
        recipe = self._run.recipe
        report = StepReport(
            number + 1, recipe.steps, self._losses[-1], recipe.learning_rate_at(number), self._seconds(),
            self._idle_share(waited_s),
        )  # fmt: skip
        if self._on_step is not None:
            self._on_step(report)
        if self._watch is not None:
            self._watch.after(report, self._run.net, batch, precision=recipe.precision)

    def _result(self, waited_s: float) -> TrainingResult:
        if self._resume is not None and self._run.team.leads:
            if self._resume.keep:
                self._save()
            else:
                discard(self._resume)
        return TrainingResult(
            net=self._run.averaged(),
            steps=self._run.recipe.steps,
            losses=self._losses,
            seconds=self._seconds(),
            idle_share=self._idle_share(waited_s),
            trained_numbers=self._run.parts.count,
            resumed_at=self._resumed_at,
        )

    def _restore(self, point: ResumePoint) -> None:
        state = load_state(point, steps=self._run.recipe.steps)
        if state is None:
            return
        self._run.restore(state)
        self._losses, self._before_s = list(state.losses), state.seconds
        logger.info("Going on with an interrupted training at step %d of %d", state.step, state.steps)

    def _save_in_time(self, _: Engine) -> None:
        if self._resume is not None and time.monotonic() - self._saved >= self._resume.pause_s(self._took_s):
            self._save()

    def _save(self) -> None:
        """A disk that is full costs the chance to resume, not the training."""
        if self._resume is None or not self._run.team.leads:
            return
        began = time.monotonic()
        try:
            save_state(self._resume, self._run.state(self._losses, self._seconds()))
        except OSError as error:
            logger.warning("The state of the training could not be saved: %s", error.strerror)
        self._saved = time.monotonic()
        self._took_s = self._saved - began

    def _seconds(self) -> float:
        return self._before_s + time.monotonic() - self._started

    def _idle_share(self, waited_s: float) -> float:
        return waited_s / max(time.monotonic() - self._started, 1e-9)


def build_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the trainable parameters; prior tables do not decay.

    A row of a prior table that nobody asks for has a gradient of exactly zero, so without decay it keeps its
    bits. LAMB is pytorch_optimizer's, which runs on every device. Set like apex's FusedLAMB of the published
    runs: the decay is part of the update that the trust ratio scales. What still differs: apex corrects the
    bias of the moments, this one does not (the warm-up covers the first steps); this one caps the weight norm
    in the trust ratio at 10; apex clips the global gradient norm at 1 inside, here the caller does.
    """
    trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    tables = [p for name, p in trainable if name.endswith("_prior")]
    others = [p for name, p in trainable if not name.endswith("_prior")]
    groups = [
        {"params": others, "weight_decay": recipe.weight_decay},
        {"params": tables, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "adamw":
        rate, betas, eps = recipe.learning_rate, recipe.betas, recipe.eps
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True)
    optimiser: torch.optim.Optimizer = Lamb(
        groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, weight_decouple=False
    )
    return optimiser
