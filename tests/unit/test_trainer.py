"""A training run on a toy: it learns, it stops when told, and it repeats itself bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from hermes.errors import CancelledError, NothingToTrainError
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.model.priors import PriorTables
from hermes.training.cases import TrainingCase
from hermes.training.sampling import PatchSampler
from hermes.training.trainer import (
    Recipe,
    StepReport,
    TrainingResult,
    batch_loss,
    build_optimiser,
    fit_patch,
    train,
)
from hermes.types import Modality

CPU = torch.device("cpu")
TOY = replace(Recipe.for_cpu(), steps=3, patch=(16, 16, 32), batch_size=1, augment=False)


def toy_net() -> UniversalNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig("hermes-c", 4, tasks=2))


def toy_case() -> TrainingCase:
    """A bright ball in noise."""
    z, y, x = np.ogrid[:16, :16, :32]
    ball = (z - 8) ** 2 + (y - 8) ** 2 + (x - 12) ** 2 < 30
    image = np.random.default_rng(0).normal(0, 0.2, ball.shape) + 2 * ball
    return TrainingCase("ball", image.astype(np.float32), ball.astype(np.uint8), {0: 1}, Modality.CT)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(recipe: Recipe = TOY, seed: int = 0, **more: object) -> TrainingResult:
    return train(toy_net(), [toy_case()], recipe, device=CPU, seed=seed, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", [Recipe.for_cpu(), Recipe.for_gpu()], ids=["cpu", "gpu"])
def test_training_reduces_the_loss(recipe: Recipe) -> None:
    recipe = replace(recipe, steps=20, patch=(16, 16, 32), batch_size=1, augment=False)
    losses = run(recipe).losses
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    recipe = replace(TOY, augment=True)
    first, again, other = (run(recipe, seed).net.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_stopping_raises_before_the_next_step() -> None:
    reports: list[StepReport] = []
    with pytest.raises(CancelledError, match="after 2 of 3 steps"):
        run(on_step=reports.append, should_stop=lambda: len(reports) == 2)
    assert [r.step for r in reports] == [1, 2]


def test_every_step_is_reported() -> None:
    reports: list[StepReport] = []
    result = run(on_step=reports.append)
    assert [(r.step, r.steps) for r in reports] == [(1, 3), (2, 3), (3, 3)]
    assert [r.loss for r in reports] == result.losses
    assert [r.learning_rate for r in reports] == [TOY.learning_rate_at(k) for k in range(3)]


def test_the_result_can_answer_and_can_be_trained_further() -> None:
    result = run()
    assert not result.net.training
    assert all(p.requires_grad for p in result.net.parameters())
    further = train(result.net, [toy_case()], TOY, device=CPU, seed=1)
    assert all(bool(torch.isfinite(p).all()) for p in further.net.parameters())


@pytest.mark.parametrize("optimiser", ["adamw", "lamb"])
def test_rows_that_were_never_asked_keep_their_bits(optimiser: Literal["adamw", "lamb"]) -> None:
    before = _tables(toy_net())
    after = _tables(run(replace(TOY, optimiser=optimiser, weight_decay=0.1)).net)
    assert all(torch.equal(a.task_prior[1], b.task_prior[1]) for a, b in zip(after, before, strict=True))
    assert not any(torch.equal(a.task_prior[0], b.task_prior[0]) for a, b in zip(after, before, strict=True))


def _tables(net: torch.nn.Module) -> list[PriorTables]:
    return [m for m in net.modules() if isinstance(m, PriorTables)]


def test_nothing_to_train() -> None:
    with pytest.raises(NothingToTrainError):
        train(toy_net(), [], TOY, device=CPU, seed=0)


def test_bf16_gives_nearly_the_loss_of_fp32() -> None:
    net = toy_net()
    batch = PatchSampler([toy_case()], patch=TOY.patch, batch_size=1, seed=0).batch(0)
    exact, rough = (float(batch_loss(net, batch, precision=p).detach()) for p in ("fp32", "bf16"))
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    recipe = Recipe(steps=200, learning_rate=1.0, warmup_fraction=0.05)
    rates = [recipe.learning_rate_at(step) for step in range(200)]
    assert rates[0] < 0.01
    assert rates[10] == pytest.approx((1 - 10 / 200) ** 0.9)  # the warm-up is over after 10 steps
    assert rates[100] == pytest.approx(0.5**0.9)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_recipes() -> None:
    gpu, cpu = Recipe.for_gpu(), Recipe.for_cpu()
    assert gpu.optimiser == "lamb"
    assert (gpu.learning_rate, gpu.betas, gpu.eps, gpu.weight_decay, gpu.ema_decay) == (
        2e-3, (0.9, 0.999), 1e-5, 1e-5, 0.99,
    )  # fmt: skip
    assert cpu.optimiser == "adamw"
    assert type(build_optimiser(toy_net(), gpu)).__name__ == "Lamb"
    assert type(build_optimiser(toy_net(), cpu)).__name__ == "AdamW"


@pytest.mark.parametrize("recipe", [Recipe.for_cpu(), Recipe.for_gpu()], ids=["cpu", "gpu"])
def test_more_cases_get_more_steps_up_to_a_limit(recipe: Recipe) -> None:
    steps = [recipe.steps_for(n) for n in (1, 5, 10, 20, 1000, 2000)]
    assert steps[:5] == sorted(set(steps[:5]))
    assert steps[4] == steps[5]


def test_larger_patches_get_fewer_steps_on_a_cpu() -> None:
    small = replace(Recipe.for_cpu(), patch=(32, 48, 32))
    assert small.steps_for(20) == 150 + 40 * 20
    # 64 cubed has 16/3 of the voxels
    assert replace(small, patch=(64, 64, 64)).steps_for(20) == round(950 * (3 / 16) ** 0.5)
    assert replace(small, patch=(16, 16, 32)).steps_for(20) == 950


def test_the_average_remembers_a_part_of_the_run() -> None:
    recipe = Recipe(ema_decay=0.99, ema_fraction=0.1)
    assert replace(recipe, steps=200).average_decay() == pytest.approx(0.95)  # of 20 steps
    assert replace(recipe, steps=100_000).average_decay() == 0.99
    assert replace(recipe, steps=3).average_decay() == 0.0


def test_fit_patch() -> None:
    assert fit_patch([(36, 50, 36)], largest=64) == (32, 48, 32)
    assert fit_patch([(14, 14, 14)], largest=64) == (16, 16, 32)
    assert fit_patch([(8, 40, 200)], largest=64) == (16, 48, 64)
    assert fit_patch([(30, 30, 30), (90, 90, 90), (100, 100, 100)], largest=128) == (96, 96, 96)
