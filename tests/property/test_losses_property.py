"""Laws of the partial-label losses."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.training.losses import distillation_loss, segmentation_losses


def batch(seed, b, n):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(b, n, 3, 4, 5, generator=generator)).requires_grad_()
    masks = torch.rand(b, n, 3, 4, 5, generator=generator) > torch.rand(b, n, 1, 1, 1, generator=generator)
    return logits, masks, generator


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_an_unannotated_task_gets_a_gradient_of_exactly_zero(seed, b, n, per_voxel):
    logits, masks, generator = batch(seed, b, n)
    annotated = torch.rand(b, n, generator=generator) > 0.5
    weights = annotated.float()
    if per_voxel:
        weights = weights[..., None, None, None] * torch.rand(b, n, 3, 4, 5, generator=generator)
    dice, bce = segmentation_losses(logits, masks, weights)
    (dice + bce).backward()
    assert torch.isfinite(dice + bce)
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[~annotated].any()
    if not per_voxel:
        assert all(g.any() for g in logits.grad[annotated])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_losses_do_not_see_what_was_not_annotated(seed, b, n):
    logits, masks, generator = batch(seed, b, n)
    annotated = torch.rand(b, n, generator=generator) > 0.5
    other = torch.where(annotated[..., None, None, None], masks, ~masks)
    assert segmentation_losses(logits, masks, annotated.float()) == segmentation_losses(
        logits, other, annotated.float()
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_losses_are_bounded_and_padding_changes_nothing(seed, b, n):
    logits, masks, _ = batch(seed, b, n)
    weights = torch.ones(b, n)
    dice, bce = segmentation_losses(logits, masks, weights)
    assert 0 <= dice <= 1
    assert bce >= 0
    padded = segmentation_losses(
        torch.cat([logits, 100 * torch.ones_like(logits)], dim=1),
        torch.cat([masks, masks], dim=1),
        torch.cat([weights, 0 * weights], dim=1),
    )
    torch.testing.assert_close((dice, bce), padded)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_a_teacher_reaches_what_it_answers_and_nothing_else(seed, b, n):
    logits, _, generator = batch(seed, b, n)
    targets = torch.rand(logits.shape, generator=generator)
    distilled = torch.rand(b, n, generator=generator) > 0.5
    loss = distillation_loss(logits, targets, distilled)
    loss.backward()
    assert loss >= 0
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[~distilled].any()
    assert all(g.any() for g in logits.grad[distilled])
    elsewhere = torch.where(distilled[..., None, None, None], targets, 1 - targets)
    assert loss == distillation_loss(logits, elsewhere, distilled)
    hard = targets.round()  # log 0 does not appear
    assert torch.isfinite(distillation_loss(logits, hard, distilled))
