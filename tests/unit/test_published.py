"""Published weights: parity with the fixtures, and refusal of what does not fit."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.errors import BadRequestError, WeightsMismatchError
from hermes.model import NetworkConfig
from hermes.published import convert_published, load_published, published_shapes

PARITY = Path(
    os.environ.get("HERMES_TEST_PARITY", Path(__file__).resolve().parents[2] / ".." / "shared" / "parity")
)
needs_parity = pytest.mark.skipif(
    not (PARITY / "hermes_m.npz").is_file(), reason="no parity fixtures: set HERMES_TEST_PARITY"
)


def fixture_shapes(name):
    return {k: tuple(s) for k, s in json.loads((PARITY / f"{name}.state_dict.json").read_text()).items()}


def by_rule(shapes):
    """The weights of the fixtures' rule, so that no weight file is needed."""
    state_dict = {}
    for i, (name, shape) in enumerate(shapes.items()):
        a = np.random.RandomState(i).randn(*shape)
        if a.ndim >= 2:
            a = a / math.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            a = 1 + 0.1 * a
        else:
            a = 0.1 * a
        state_dict[name] = torch.tensor(a.astype(np.float32))
    return state_dict


def fixture_input(data):
    image = np.random.RandomState(int(data["input_seed"])).randn(*data["input_shape"]).astype(np.float32)
    return torch.tensor(image), torch.tensor(data["task_idx"]), torch.tensor(data["modality_idx"]).flatten()


@needs_parity
@pytest.mark.parametrize(
    ("file", "network", "width"),
    [("hermes_r_base8", "hermes-r", 8), ("hermes_r_base32", "hermes-r", 32), ("hermes_m", "hermes-m", 32)],
)
def test_names_and_shapes_are_the_published_ones(file, network, width):
    assert published_shapes(NetworkConfig(network, width, tasks=72)) == fixture_shapes(file)


@needs_parity
def test_parity_of_the_residual_network():
    data = np.load(PARITY / "hermes_r_base8.npz")
    net = load_published(by_rule(fixture_shapes("hermes_r_base8")), "hermes-r")
    with torch.no_grad():
        logits, modality_logits = net(*fixture_input(data))
    np.testing.assert_allclose(logits.numpy(), data["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(modality_logits.numpy(), data["modality_logits"], atol=1e-4, rtol=0)


@needs_parity
def test_parity_of_the_medformer_network():
    data = np.load(PARITY / "hermes_m.npz")
    net = load_published(by_rule(fixture_shapes("hermes_m")), "hermes-m")
    with torch.no_grad():
        out = net.network(*fixture_input(data))
    every2 = (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2), slice(None, None, 2))
    np.testing.assert_allclose(out.logits[every2].numpy(), data["logits_every2"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(
        out.auxiliary_logits[every2].numpy(), data["aux_logits_every2"], atol=1e-3, rtol=0
    )
    np.testing.assert_allclose(out.modality_logits.numpy(), data["modality_logits"], atol=1e-3, rtol=0)


SMALL = {"hermes-r": NetworkConfig("hermes-r", 4, 5, 2), "hermes-m": NetworkConfig("hermes-m", 4, 5, 2)}


@pytest.fixture(params=sorted(SMALL))
def small(request):
    config = SMALL[request.param]
    return config, by_rule(published_shapes(config))


def test_sizes_are_read_from_the_shapes(small):
    config, state_dict = small
    net = load_published(state_dict, config.name)
    assert net.network.config == config
    assert not net.training


def test_minus_one_is_the_last_row_of_the_published_tables(small):
    config, state_dict = small
    net = load_published(state_dict, config.name)
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        by_minus_one = net(image, torch.tensor([[0, -1]]), torch.tensor([-1]))
        by_last_row = net(image, torch.tensor([[0, 5]]), torch.tensor([2]))
        real = net(image, torch.tensor([[0, 4]]), torch.tensor([1]))
    assert torch.equal(by_minus_one[0], by_last_row[0])
    assert by_minus_one[1].shape == (1, 3)
    assert not torch.allclose(by_minus_one[0], real[0])
    for row in (6, -2):
        with pytest.raises(BadRequestError, match=r"task rows from 0 to 4, or -1 \(or 5\) for none"):
            net(image, torch.tensor([[row]]), torch.tensor([0]))
    with pytest.raises(BadRequestError, match="modality rows from 0 to 1"):
        net(image, torch.tensor([[0]]), torch.tensor([3]))


def test_conversion_copies(small):
    config, state_dict = small
    _, ours = convert_published(state_dict, config.name)
    before = {name: value.clone() for name, value in ours.items()}
    for value in state_dict.values():
        value.zero_()
    assert all(torch.equal(ours[name], before[name]) for name in ours)


def test_a_missing_entry_is_named(small):
    config, state_dict = small
    for name in list(state_dict)[:: max(1, len(state_dict) // 15)]:
        rest = {k: v for k, v in state_dict.items() if k != name}
        with pytest.raises(WeightsMismatchError) as caught:
            load_published(rest, config.name)
        assert f"missing {name} " in str(caught.value)


def test_a_surplus_entry_is_named(small):
    config, state_dict = small
    with pytest.raises(WeightsMismatchError, match=r"surplus extra\.weight"):
        load_published({**state_dict, "extra.weight": torch.zeros(1)}, config.name)


def test_a_misshapen_entry_is_named_even_where_sizes_are_read(small):
    config, state_dict = small
    telling = [n for n in state_dict if n.endswith(("task_prior", "modality_prior"))][:2]
    for name in ["inc.conv1.weight", *telling, *list(state_dict)[:: max(1, len(state_dict) // 15)]]:
        value = state_dict[name]
        wrong = {**state_dict, name: torch.zeros(value.shape[0] + 1, *value.shape[1:])}
        with pytest.raises(WeightsMismatchError) as caught:
            load_published(wrong, config.name)
        assert f"misshapen {name}: expected {list(value.shape)}" in str(caught.value)


def test_entries_that_hold_no_weights_are_named(small):
    config, state_dict = small
    value = state_dict["inc.conv1.weight"]
    for wrong, said in (
        (value.long(), "floating-point"),
        (value.to("meta"), "without values"),
        (value * float("nan"), "NaN"),
    ):
        with pytest.raises(WeightsMismatchError, match=rf"{said}.*inc\.conv1\.weight"):
            load_published({**state_dict, "inc.conv1.weight": wrong}, config.name)


def test_what_is_no_state_dict_is_refused():
    with pytest.raises(WeightsMismatchError, match="ema_model_state_dict"):
        load_published({"epoch": 3, "model_state_dict": {}}, "hermes-r")
    with pytest.raises(WeightsMismatchError, match="empty"):
        load_published({}, "hermes-r")
    with pytest.raises(WeightsMismatchError, match="width"):
        load_published({"a.task_prior": torch.zeros(3, 4)}, "hermes-r")
    with pytest.raises(BadRequestError, match="hermes-m"):
        load_published({}, "hermes-c")
