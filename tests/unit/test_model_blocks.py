"""Blocks whose right answer is arithmetic, and the sizes that the paper states."""

import pytest
import torch
from torch.nn import functional as F

from hermes.device import in_fast_layout
from hermes.model import DEFAULT_WIDTHS, NetworkConfig, build_network, contract
from hermes.model.attention import BidirectionalAttention, PatchMerging, SemanticMap, head_count
from hermes.model.blocks import (
    ConvUnit,
    ResidualBlock,
    fast_instance_norm,
    in_layout_of,
    instance_norm,
    upsample_to,
)
from hermes.model.fusion import CrossAttention


def parameter_count(name, tasks=72):
    with torch.device("meta"):
        net = build_network(NetworkConfig(name, DEFAULT_WIDTHS[name], tasks))
    return sum(p.numel() for p in net.parameters())


def test_default_sizes():
    assert parameter_count("hermes-r") == pytest.approx(60.9e6, rel=0.002)
    assert parameter_count("hermes-m") == pytest.approx(47.1e6, rel=0.002)
    assert parameter_count("hermes-c") < 5.5e6


def test_upsampling_keeps_corners_and_type():
    x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    y = upsample_to(x, torch.Size((3, 3, 3)))
    assert torch.equal(y[..., ::2, ::2, ::2], x)
    assert y[0, 0, 1, 1, 1] == 3.5
    assert upsample_to(x.bfloat16(), torch.Size((3, 3, 3))).dtype == torch.bfloat16


def test_upsampling_is_float32_under_autocast():
    x = torch.rand(1, 2, 8, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = upsample_to(x, torch.Size((16, 16, 16)))
    outside = F.interpolate(x.float(), size=(16, 16, 16), mode="trilinear", align_corners=True)
    assert torch.equal(inside, outside.bfloat16())


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d)


def test_fast_norm_is_the_norm_in_both_layouts():
    x = 3 + 2 * torch.randn(2, 5, 8, 9, 10)
    expected = F.instance_norm(x, eps=1e-4)
    for y in (x, channels_last(x)):
        torch.testing.assert_close(fast_instance_norm(y, 1e-4), expected, atol=1e-4, rtol=1e-4)
    kept = fast_instance_norm(channels_last(x), 1e-4)
    assert kept.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("shape", [(2, 5, 8, 9, 10), (1, 3, 64, 64, 64), (1, 4, 2, 1, 1)])
def test_norm_is_exact_in_channels_last(shape):
    generator = torch.Generator().manual_seed(0)
    x = (
        10
        + torch.randn(shape, generator=generator)
        * torch.tensor([1.0, 3, 0.1, 2, 1])[: shape[1], None, None, None]
    )
    x = x + torch.linspace(0, 3, shape[2])[:, None, None]  # planes differ
    expected = F.instance_norm(x.double(), eps=1e-4).float()
    with torch.no_grad():
        y = instance_norm(channels_last(x), 1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, expected, atol=2e-5, rtol=1e-5)


def test_norm_has_the_gradient_of_the_norm_in_channels_last():
    x = torch.randn(1, 3, 4, 5, 6)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        y = x.clone(memory_format=layout).requires_grad_()
        instance_norm(y, 1e-4).square().mul(torch.arange(6.0)).sum().backward()
        gradients.append(y.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["hermes-r", "hermes-c"])
def test_a_network_answers_the_same_in_its_fast_layout(name):
    torch.manual_seed(0)
    net = build_network(NetworkConfig(name, 8, tasks=3)).eval()
    image, rows, modality = torch.randn(2, 1, 32, 16, 48), torch.tensor([[0, 2]] * 2), torch.tensor([0, 1])
    with torch.no_grad():
        plain = net(image, rows, modality).logits
        fast = in_fast_layout(net, torch.device("cpu")).encode(image, rows, modality)
    assert fast.features.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(contract(fast.features, fast.class_weights), plain, atol=1e-3, rtol=1e-3)


def test_the_layout_follows_the_weights():
    conv, x = torch.nn.Conv3d(2, 2, 3), torch.randn(1, 2, 4, 4, 4)
    assert in_layout_of(conv.weight, x) is x
    conv = in_fast_layout(conv, torch.device("cpu"))
    assert in_layout_of(conv.weight, x).is_contiguous(memory_format=torch.channels_last_3d)


def test_residual_block_skips_and_projects():
    x = torch.randn(1, 3, 4, 4, 4)
    same, wider = ResidualBlock(3, 3), ResidualBlock(3, 5)
    for unit in (same.unit2, wider.unit2):
        torch.nn.init.zeros_(unit.conv.weight)
    assert torch.equal(same(x), x)
    assert torch.equal(wider(x), wider.shortcut(x))


def test_unit_can_leave_out_the_activation():
    x = torch.randn(1, 1, 4, 4, 4)
    unit = ConvUnit(1, 1, kernel=1, activate=False)
    torch.nn.init.ones_(unit.conv.weight)
    assert unit(x).min() < 0
    unit.activate = True
    assert unit(x).min() >= 0


def test_cross_attention_reads_the_mean_of_equal_keys():
    attention = CrossAttention(64)
    torch.nn.init.zeros_(attention.to_q.weight)
    context = torch.randn(1, 7, 64)
    value = attention.to_kv(attention.norm_context(context))[..., 64:].mean(dim=1, keepdim=True)
    read = attention(torch.randn(1, 3, 64), context)
    torch.testing.assert_close(read, attention.to_out(value).expand(1, 3, 64))


def test_patch_merging_orders_the_sub_lattices():
    merging = PatchMerging(1, 8)
    seen = {}
    merging.reduction.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    x = torch.randn(1, 1, 4, 4, 4)
    merging(x)
    lattice = x[0, 0, 1::2, 0::2, 1::2]  # D odd, W odd: index 0b101
    expected = (lattice - lattice.mean()) / (lattice.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(seen["x"][0, 5], expected)


def test_semantic_map_of_a_constant_is_that_constant():
    semantic_map = SemanticMap(3, 4)
    for conv in (semantic_map.features, semantic_map.attention):
        torch.nn.init.zeros_(conv.weight)
    for i in range(3):
        semantic_map.features.weight.data[i, i, 1, 1, 1] = 1
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2)
    torch.testing.assert_close(semantic_map(x), torch.tensor([1.0, 2.0, 3.0]).expand(1, 4, 3))


def test_bidirectional_attention_is_one_affinity_read_twice():
    torch.manual_seed(0)
    attention = BidirectionalAttention(64, 64, projects_tokens=False)
    x, tokens = torch.randn(1, 64, 2, 3, 2), torch.randn(1, 5, 64)
    q, v = attention.feature_qv(x).flatten(2).view(1, 2, 32, 2, 12).unbind(1)  # (1, size, heads, voxels)
    token_q, token_v = attention.token_qv(tokens).view(1, 5, 2, 32, 2).unbind(2)  # (1, l, size, heads)
    affinity = torch.einsum("bshn,blsh->bhnl", q, token_q) / 32**0.5
    to_features = torch.einsum("bhnl,blsh->bshn", affinity.softmax(-1), token_v)
    to_tokens = torch.einsum("bhnl,bshn->blsh", affinity.softmax(-2), v)
    features, updated = attention(x, tokens)
    torch.testing.assert_close(features, attention.feature_out(to_features.reshape(1, 64, 2, 3, 2)))
    torch.testing.assert_close(updated, to_tokens.reshape(1, 5, 64))


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (40, 1), (80, 2), (128, 4), (240, 6), (320, 10)])
def test_head_count(width, heads):
    assert head_count(width) == heads


def test_contract_is_a_weighted_sum_of_channels():
    features = torch.randn(2, 3, 2, 2, 2)
    weights = torch.randn(2, 4, 3)
    expected = torch.einsum("bcdhw,bnc->bndhw", features, weights)
    torch.testing.assert_close(contract(features, weights), expected)
