"""Prior tables and their growth."""

import pytest
import torch

from hermes.errors import BadRequestError
from hermes.model import NetworkConfig, build_network, extend_tasks
from hermes.model.priors import MODALITY_TOKENS, TASK_PRIOR_GAIN, PriorTables, Prompt


def test_tokens_are_the_named_rows_in_order():
    tables = PriorTables(tasks=3, modalities=2, width=4)
    prompt = Prompt.of(
        torch.tensor([[2, 0], [1, -1]]),
        torch.tensor([1, -1]),
        task_mask=torch.tensor([[True, True], [True, False]]),
        modality_known=torch.tensor([True, False]),
    )
    tokens = tables(prompt)
    assert tokens.shape == (2, 2 + MODALITY_TOKENS, 4)
    assert torch.equal(tokens[0, 0], tables.task_prior[2])
    assert torch.equal(tokens[1, 1], tables.null_prior)
    assert torch.equal(tokens[0, 2:], tables.modality_prior[1])
    assert torch.equal(tokens[1, 2:], tables.unknown_modality_prior)


def test_rows_start_within_the_scaled_xavier_bound_and_are_distinct():
    tables = PriorTables(tasks=9, modalities=2, width=54)
    bound = TASK_PRIOR_GAIN * (6 / (10 + 54)) ** 0.5
    values = torch.cat([tables.task_prior, tables.null_prior[None]])
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert len(torch.unique(values, dim=0)) == 10


def test_new_rows_have_the_scale_of_the_first_ones():
    tables = PriorTables(tasks=9, modalities=2, width=54)
    first = tables.task_prior.std().item()
    tables.append([None] * 9, torch.Generator().manual_seed(0))
    assert tables.task_prior[9:].std().item() == pytest.approx(first, rel=0.1)


def test_new_rows_are_seeded_and_old_absence_stays():
    def grown(seed):
        torch.manual_seed(0)
        tables = PriorTables(tasks=2, modalities=1, width=8)
        null = tables.null_prior.detach().clone()
        tables.append([None, 1], torch.Generator().manual_seed(seed))
        assert torch.equal(tables.null_prior, null)
        return tables.task_prior

    assert torch.equal(grown(1), grown(1))
    assert not torch.equal(grown(1), grown(2))
    assert torch.equal(grown(1)[3], grown(1)[1])
    assert grown(1).requires_grad


def test_impossible_extensions_are_refused_and_change_nothing():
    net = build_network(NetworkConfig("hermes-c", width=4, tasks=2))
    with pytest.raises(BadRequestError, match="one initialisation per new task"):
        extend_tasks(net, 2, [None])
    with pytest.raises(BadRequestError, match="0 to 1"):
        extend_tasks(net, 1, [2])
    extend_tasks(net, 0, [])
    assert net.config == NetworkConfig("hermes-c", width=4, tasks=2)


@pytest.mark.parametrize("config", [NetworkConfig("hermes-x", 8, 2), NetworkConfig("hermes-r", 0, 2)])
def test_impossible_configurations_are_refused(config):
    with pytest.raises(BadRequestError, match="Expected"):
        build_network(config)
