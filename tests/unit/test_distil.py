"""The serving model as teacher: what it answers, for whom, and what that does."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.training.backward import WholeBatch, batch_loss
from hermes.training.cases import TrainingCase
from hermes.training.distil import Teacher
from hermes.training.losses import distillation_loss
from hermes.training.sampling import Batch, PatchSampler
from hermes.training.trainer import Recipe, train
from hermes.types import CaseId, Modality

CPU = torch.device("cpu")
PATCH = (16, 16, 32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def toy_net(seed: int = 0) -> UniversalNetwork:
    torch.manual_seed(seed)
    return build_network(NetworkConfig("hermes-c", 4, tasks=4)).eval()


def toy_case(annotated: dict[int, int | None], name: str = "a") -> TrainingCase:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, PATCH).astype(np.uint8)
    image = (rng.normal(size=labels.shape) + labels).astype(np.float32)
    return TrainingCase(CaseId(name), image, labels, annotated, Modality.CT)


def sampled(
    *cases: TrainingCase, rows: tuple[int, ...], most: int = 4, rehearsed: tuple[int, ...] = ()
) -> Batch:
    return PatchSampler(
        cases, patch=PATCH, batch_size=4, seed=0, distil_rows=rows, distil_most=most, rehearsed_rows=rehearsed
    ).batch(0)  # fmt: skip


def taught_by(net: UniversalNetwork, weight: float) -> Teacher:
    return Teacher([(net, range(4))], weight)


def test_the_loss_is_zero_where_student_and_teacher_agree() -> None:
    logits = (3 * torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    both = torch.ones(1, 2, dtype=torch.bool)
    loss = distillation_loss(logits, torch.sigmoid(logits).detach(), both)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7
    # by hand: one voxel, T = 1, P = 1/2: BCE log 2, overlap (2 * 0.5 + 1) / (0.25 + 1 + 1)
    by_hand = distillation_loss(torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1), both[:, :1])
    assert float(by_hand) == pytest.approx(np.log(2) + 1 - 2 / 2.25)


def test_the_teacher_is_asked_where_nobody_annotated() -> None:
    batch = sampled(toy_case({0: 1, 3: 2}), rows=(0, 1, 2))
    for b in range(4):
        soft = batch.task_rows[b, batch.distilled[b]].tolist()
        hard = batch.task_rows[b, batch.weights[b] > 0].tolist()
        assert set(soft) == {1, 2}
        assert set(hard) <= {0, 3}
    assert not (batch.distilled & (batch.weights > 0)).any()
    assert float(batch.masks[batch.distilled].sum()) == 0
    few = sampled(toy_case({0: 1}), rows=(1, 2, 3), most=1)
    assert few.distilled.sum(dim=1).tolist() == [1] * 4
    assert len({int(few.task_rows[b, few.distilled[b]]) for b in range(4)}) > 1


def test_a_teacher_is_asked_only_for_what_the_image_may_show() -> None:
    batch = sampled(replace(toy_case({0: 1}), covered=frozenset({0, 2})), rows=(1, 2, 3))
    assert {int(row) for row in batch.task_rows[batch.distilled]} == {2}


def test_a_teacher_does_not_change_what_else_is_drawn() -> None:
    case = toy_case({0: 1, 3: 2})
    plain, taught = sampled(case, rows=()), sampled(case, rows=(1, 2))
    assert torch.equal(plain.image, taught.image)
    for b in range(4):
        hard = taught.weights[b] > 0
        kept = plain.task_mask[b]
        assert torch.equal(taught.task_rows[b, hard], plain.task_rows[b, kept])
        assert torch.equal(taught.masks[b, hard], plain.masks[b, kept])


def test_rehearsed_tasks_have_a_label_and_a_teacher() -> None:
    case = toy_case({0: 1, 3: 2})
    plain, taught = sampled(case, rows=(1, 2)), sampled(case, rows=(1, 2), rehearsed=(0, 1))
    names = ("image", "masks", "weights", "task_rows", "task_mask", "beside")
    assert all(torch.equal(getattr(plain, n), getattr(taught, n)) for n in names)
    more = taught.distilled & ~plain.distilled
    assert torch.equal(more, (taught.task_rows == 0) & (taught.weights > 0))
    assert more.any()
    assert taught.norms.distilled == plain.norms.distilled + int(more.sum())
    student, teacher = toy_net(1).train(), taught_by(toy_net(), 1.0)
    out = student(taught.image, taught.task_rows, taught.modality_rows, task_mask=taught.task_mask)
    soft = distillation_loss(out.logits, teacher.answers(taught, precision="fp32"), taught.distilled)
    both = batch_loss(student, taught, teacher=teacher).item()
    assert both - batch_loss(student, taught).item() == pytest.approx(
        soft.item() / taught.norms.distilled, rel=1e-4
    )


def test_targets_are_the_teachers_probabilities() -> None:
    net = toy_net()
    batch = sampled(toy_case({3: 2}), rows=(0, 1))
    masks = batch.masks.clone()
    answers = taught_by(net, 1.0).answers(batch, precision="fp32")
    with torch.no_grad():
        answer = net(batch.image[:1], torch.tensor([[0, 1]]), batch.modality_rows[:1]).logits.sigmoid()
    assert torch.equal(answers[0, batch.distilled[0]], answer[0])
    assert not answers[~batch.distilled].any()
    assert torch.equal(masks, batch.masks)  # the batch that was given is left alone


def test_each_task_is_answered_by_its_own_teacher() -> None:
    one, other = toy_net(), toy_net(1)
    batch = sampled(toy_case({3: 2}), rows=(0, 1, 2))
    answers = Teacher([(one, (0, 2)), (other, (1,))], 1.0).answers(batch, precision="fp32")
    second = batch.task_rows == 1
    for net, its in ((one, batch.distilled & ~second), (other, batch.distilled & second)):
        assert its.any()
        alone = taught_by(net, 1.0).answers(replace(batch, distilled=its), precision="fp32")
        assert torch.equal(answers[its], alone[its])
    assert not answers[~batch.distilled].any()


def test_distilled_channels_have_no_gradient_without_a_teacher() -> None:
    net = toy_net().train()
    batch = sampled(toy_case({3: 2}), rows=(0, 1))
    out = net(batch.image, batch.task_rows, batch.modality_rows, task_mask=batch.task_mask)
    assert out.logits.requires_grad
    other = replace(batch, masks=torch.where(batch.distilled[..., None, None, None], 1.0, batch.masks))
    assert batch_loss(net, batch).item() == batch_loss(net, other).item()


def test_the_weight_scales_what_the_teacher_says() -> None:
    student, teacher = toy_net(1).train(), toy_net()
    batch = sampled(toy_case({3: 2}), rows=(0, 1))
    none, one, two = (
        batch_loss(student, batch, teacher=taught_by(teacher, weight)).item() for weight in (0.0, 1.0, 2.0)
    )
    assert one > none
    assert two - none == pytest.approx(2 * (one - none), rel=1e-4)
    assert none == pytest.approx(batch_loss(student, batch).item())


def test_parts_of_a_taught_batch_add_up() -> None:
    student, teacher = toy_net(1).train(), taught_by(toy_net(), 0.7)
    batch = sampled(toy_case({3: 2}), toy_case({0: 1, 1: 2}, "b"), rows=(0, 1, 2))
    whole = batch_loss(student, batch, teacher=teacher).item()
    parts = sum(batch_loss(student, batch.part(i, i + 1), teacher=teacher).item() for i in range(4))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert WholeBatch()(student, batch, precision="fp32", teacher=teacher) == pytest.approx(whole, rel=1e-6)


def test_old_tasks_stay_nearer_with_a_teacher() -> None:
    old = toy_net()
    drift = {}
    for weight in (0.0, 3.0):
        recipe = replace(
            Recipe.for_cpu(), steps=12, patch=PATCH, batch_size=1, augment=False, distil_weight=weight
        )
        trained = train(
            copy.deepcopy(old), [toy_case({3: 2})], recipe, device=CPU, seed=0,
            teachers=[(copy.deepcopy(old), (0, 1, 2))],
        ).net  # fmt: skip
        image = torch.from_numpy(np.asarray(toy_case({3: 2}).image))[None, None]
        with torch.no_grad():
            answers = [
                net(image, torch.tensor([[0, 1, 2]]), torch.tensor([0])).logits.sigmoid()
                for net in (old, trained)
            ]
        drift[weight] = float((answers[0] - answers[1]).abs().mean())
    assert drift[3.0] < 0.7 * drift[0.0]
