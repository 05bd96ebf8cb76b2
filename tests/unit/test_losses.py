"""Losses: arithmetic toys, the published numbers, and what is left out."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.errors import BadRequestError
from hermes.training.losses import modality_loss, segmentation_losses

PARITY = Path(
    os.environ.get("HERMES_TEST_PARITY", Path(__file__).resolve().parents[2] / ".." / "shared" / "parity")
)


def saturated(mask):
    return torch.where(mask > 0, 40.0, -40.0)


def test_published_values_and_gradient():
    if not (PARITY / "losses.npz").is_file():
        pytest.skip("no parity fixtures: set HERMES_TEST_PARITY")
    data = np.load(PARITY / "losses.npz")
    logits = torch.tensor(data["logits"], requires_grad=True)
    weights = torch.tensor(data["task_idx"] >= 0).float()
    dice, bce = segmentation_losses(logits, torch.tensor(data["labels"]), weights)
    (dice + bce).backward()
    assert dice.item() == pytest.approx(data["dice"].item(), abs=1e-6)
    assert bce.item() == pytest.approx(data["bce"].item(), abs=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), data["grad"], atol=1e-7, rtol=0)


def test_dice_is_arithmetic_on_a_saturated_toy():
    mask = torch.zeros(1, 1, 1, 1, 10)
    mask[..., :4] = 1
    predicted = torch.zeros_like(mask)
    predicted[..., 3:6] = 1  # TP 1, FP 2, FN 3: alpha 0.4
    dice, _ = segmentation_losses(saturated(predicted), mask, torch.ones(1, 1))
    assert dice.item() == pytest.approx(1 - 1 / (1 + 0.4 * 2 + 0.6 * 3), abs=1e-5)


@pytest.mark.parametrize(("extra", "alpha"), [("fp", 0.8), ("fn", 0.2)])
def test_alpha_is_clipped(extra, alpha):
    mask = torch.zeros(1, 1, 1, 1, 10)
    mask[..., :2] = 1
    predicted = mask.clone()
    predicted[..., (slice(2, 5) if extra == "fp" else 1)] = 1 if extra == "fp" else 0
    dice, _ = segmentation_losses(saturated(predicted), mask, torch.ones(1, 1))
    expected = 1 - (2 / (2 + alpha * 3) if extra == "fp" else 1 / (1 + (1 - alpha) * 1))
    assert dice.item() == pytest.approx(expected, abs=1e-5)


def test_bce_is_the_weighted_mean():
    logits = torch.zeros(1, 1, 1, 1, 4)
    logits[..., 0] = 3.0
    weights = torch.tensor([0.5, 0.0, 1.0, 0.0]).view(1, 1, 1, 1, 4)
    _, bce = segmentation_losses(logits, torch.zeros_like(logits), weights)
    expected = (0.5 * np.log1p(np.exp(3.0)) + np.log(2.0)) / 1.5
    assert bce.item() == pytest.approx(expected, rel=1e-5)


def test_voxel_weights_remove_voxels_from_both_losses():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 4, 4, 4), (torch.rand(2, 3, 4, 4, 4) > 0.5).to(torch.uint8)
    weights = torch.zeros(2, 3, 4, 4, 4)
    weights[:, :, :2] = 1
    whole = segmentation_losses(logits, mask, weights)
    part = segmentation_losses(logits[:, :, :2], mask[:, :, :2], torch.ones(2, 3))
    torch.testing.assert_close(whole, part)


def test_nothing_annotated_is_zero_with_zero_gradient():
    logits = torch.randn(2, 2, 3, 3, 3, requires_grad=True)
    dice, bce = segmentation_losses(logits, torch.ones(2, 2, 3, 3, 3), torch.zeros(2, 2))
    (dice + bce).backward()
    assert dice.item() == 0
    assert bce.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_empty_mask_has_dice_loss_one_and_no_dice_gradient():
    logits = torch.randn(1, 1, 3, 3, 3, requires_grad=True)
    dice, bce = segmentation_losses(logits, torch.zeros(1, 1, 3, 3, 3), torch.ones(1, 1))
    (gradient,) = torch.autograd.grad(dice, logits, retain_graph=True)
    assert dice.item() == 1
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert torch.autograd.grad(bce, logits)[0].abs().min() > 0


def test_low_precision_logits_give_float32_losses():
    logits = torch.randn(1, 1, 4, 4, 4, dtype=torch.bfloat16)
    dice, bce = segmentation_losses(logits, torch.ones(1, 1, 4, 4, 4), torch.ones(1, 1))
    assert dice.dtype == bce.dtype == torch.float32


def test_disagreeing_shapes_are_refused():
    logits = torch.zeros(1, 2, 3, 3, 3)
    with pytest.raises(BadRequestError, match="weights"):
        segmentation_losses(logits, logits, torch.ones(1, 3))
    with pytest.raises(BadRequestError, match="masks"):
        segmentation_losses(logits, logits[:, :1], torch.ones(1, 2))


def test_modality_loss_ignores_the_unknown():
    logits = torch.zeros(3, 6, requires_grad=True)
    loss = modality_loss(logits, torch.tensor([0, 3, 0]), torch.tensor([True, True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(6), rel=1e-6)
    assert torch.equal(logits.grad[2], torch.zeros(6))
    assert logits.grad[:2].abs().max() > 0


def test_modality_loss_of_all_unknown_is_zero():
    logits = torch.randn(2, 6, requires_grad=True)
    loss = modality_loss(logits, torch.tensor([0, 0]), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
