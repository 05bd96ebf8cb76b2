"""Priors only: new structures learn while everything else keeps its bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from hermes.errors import BadRequestError
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.model.priors import PriorTables
from hermes.training.cases import TrainingCase
from hermes.training.sampling import PatchSampler
from hermes.training.trainable import trainable_parts
from hermes.training.trainer import Recipe, batch_loss, train
from hermes.types import CaseId, Modality

CPU = torch.device("cpu")
NEW = (2, 3)
TOY = replace(
    Recipe.for_cpu(), steps=4, patch=(16, 16, 32), batch_size=2, augment=False, weight_decay=0.1,
    trainable="priors", new_rows=NEW,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def toy_net() -> UniversalNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig("hermes-c", 4, tasks=4))


def toy_case() -> TrainingCase:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (16, 16, 32)).astype(np.uint8)
    image = rng.normal(size=labels.shape).astype(np.float32) + labels
    return TrainingCase(CaseId("a"), image, labels, {0: 1, 2: 2, 3: 3}, Modality.CT)


@pytest.mark.parametrize("optimiser", ["adamw", "lamb"])
@pytest.mark.parametrize("threads", [1, 2])
def test_only_the_new_rows_change(optimiser: Literal["adamw", "lamb"], threads: int) -> None:
    torch.set_num_threads(threads)
    net, teacher = toy_net(), toy_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = replace(TOY, optimiser=optimiser, distil_weight=1.0)
    result = train(net, [toy_case()], recipe, device=CPU, seed=0, teachers=[(teacher, (0, 1))])
    for name, value in result.net.state_dict().items():
        if name.endswith("task_prior"):
            assert torch.equal(value[:2], before[name][:2]), name
            assert all(not torch.equal(value[row], before[name][row]) for row in NEW), name
        else:
            assert torch.equal(value, before[name]), name
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_it_trains_a_thousandth_of_the_numbers_and_computes_no_other_gradient() -> None:
    net = build_network(NetworkConfig("hermes-c", 8, tasks=22))
    with trainable_parts(net, replace(TOY, new_rows=(20, 21))) as parts:
        assert parts.count == 2 * (48 + 64 + 80 + 64 + 48)  # the widths of the five fusion levels
        assert parts.count <= 0.001 * sum(p.numel() for p in net.parameters())
        batch = PatchSampler([toy_case()], patch=TOY.patch, batch_size=1, seed=0).batch(0)
        batch_loss(net, batch).backward()  # type: ignore[no-untyped-call]
        parts.mask_gradients()
        reached = {name for name, p in net.named_parameters() if p.grad is not None}
        assert reached == {n for n, _ in net.named_parameters() if n.endswith("task_prior")}
        for table in (m.task_prior for m in net.modules() if isinstance(m, PriorTables)):
            assert table.grad is not None
            assert not table.grad[:20].any()


@pytest.mark.parametrize(("network", "width"), [("hermes-c", 4), ("hermes-r", 32), ("hermes-m", 32)])
def test_decoder_mode_freezes_the_encoder_but_not_its_priors(network: str, width: int) -> None:
    net = build_network(NetworkConfig(network, width, tasks=2))
    with trainable_parts(net, replace(TOY, trainable="decoder")):
        frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    levels = {name.split(".")[1] for name in frozen}
    assert levels - {"stem_block"} == {"stem", "down1", "down2", "down3", "down4"}
    assert not any(name.endswith("_prior") for name in frozen)
    assert all(p.requires_grad for p in net.parameters())


def test_decoder_mode_keeps_the_bits_of_the_encoder() -> None:
    net = toy_net()
    before = copy.deepcopy(net.state_dict())
    after = train(net, [toy_case()], replace(TOY, trainable="decoder"), device=CPU, seed=0).net.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed >= {"fusions", "up1", "up4"}
    assert not changed & {"stem", "down1", "down2", "down3", "down4"}


def test_what_was_trainable_before_is_so_afterwards() -> None:
    net = toy_net()
    net.backbone.stem.weight.requires_grad_(False)  # type: ignore[union-attr]
    flags = [p.requires_grad for p in net.parameters()]
    for trainable in ("priors", "decoder", "all"):
        train(net, [toy_case()], replace(TOY, steps=1, trainable=trainable), device=CPU, seed=0)
        assert [p.requires_grad for p in net.parameters()] == flags


def test_what_the_caller_froze_keeps_its_bits() -> None:
    net = toy_net()
    for parameter in net.segmentation_head.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    after = train(net, [toy_case()], replace(TOY, trainable="all"), device=CPU, seed=0).net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("segmentation_head") for name in changed)


@pytest.mark.parametrize("rows", [(), (4,), (-1,)])
def test_rows_that_do_not_exist_are_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(BadRequestError, match="rows of new structures"):
        train(toy_net(), [toy_case()], replace(TOY, new_rows=rows), device=CPU, seed=0)


def test_the_recipe_for_new_rows() -> None:
    full = replace(Recipe.for_gpu(), steps=400)
    priors = full.priors_only([7, 8])
    assert (priors.trainable, priors.new_rows, priors.weight_decay) == ("priors", (7, 8), 0.0)
    assert (
        priors.steps <= full.steps / 3
    )  # a step costs more than half of a full one; a fifth of the time is allowed
    assert priors.learning_rate > full.learning_rate
    assert (priors.patch, priors.batch_size) == (full.patch, full.batch_size)
