"""Blocks of the MedFormer member: bidirectional attention between voxels and a short token sequence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hermes.model.blocks import ConvUnit, Mlp, instance_norm

HEAD_SIZE = 32
MERGE_NORM_EPS = 1e-5
"""Epsilon of the instance norms before bidirectional attention and in patch merging."""
TOKEN_NORM_EPS = 1e-5
MAP_FUSION_NORM_EPS = 1e-4
EXPANSION = 4
SQUEEZE_RATIO = 4


def head_count(width: int) -> int:
    """The largest number of equal heads of at least 32 channels that ``width`` divides into, at least 1."""
    return next((h for h in range(width // HEAD_SIZE, 1, -1) if width % h == 0), 1)


class SeparableConv(nn.Module):
    """Depth-wise 3x3x3 convolution, then a point-wise one; no bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False)
        self.pointwise = nn.Conv3d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d h w"]:
        """The convolved feature map."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class PatchMerging(nn.Module):
    """Halved resolution: the eight sub-lattices as channels, instance norm, separable convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.reduction = SeparableConv(8 * channels_in, channels_out)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d2 h2 w2"]:
        """Features at half the resolution; sub-lattices are ordered D, H, W with W fastest."""
        lattices = [x[:, :, i::2, j::2, k::2] for i in range(2) for j in range(2) for k in range(2)]
        y: Tensor = self.reduction(instance_norm(torch.cat(lattices, dim=1), MERGE_NORM_EPS))
        return y


class SemanticMap(nn.Module):
    """A feature map summarised in ``count`` tokens: spatial attention maps pool projected features."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.features = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.attention = nn.Conv3d(channels, count, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b count c"]:
        """The tokens."""
        attention = self.attention(x).flatten(2).softmax(dim=-1)  # (b, count, voxels)
        return torch.bmm(attention, self.features(x).flatten(2).transpose(1, 2).to(attention.dtype))


class BidirectionalAttention(nn.Module):
    """One affinity between voxels and tokens, read in both directions.

    Channels split as (head size, heads) with the heads fastest. ``projects_tokens=False`` leaves out the
    output projection of the tokens, as the very last block of the published network does.
    """

    def __init__(self, channels_in: int, channels_out: int, *, projects_tokens: bool) -> None:
        super().__init__()
        self.heads = head_count(channels_out)
        self.feature_qv = SeparableConv(channels_in, 2 * channels_out)
        self.feature_out = SeparableConv(channels_out, channels_out)
        self.token_qv = nn.Linear(channels_out, 2 * channels_out, bias=False)
        self.token_out: nn.Module = (
            nn.Linear(channels_out, channels_out, bias=False) if projects_tokens else nn.Identity()
        )

    def forward(
        self, x: Float[Tensor, "b c d h w"], tokens: Float[Tensor, "b l c2"]
    ) -> tuple[Float[Tensor, "b c2 d h w"], Float[Tensor, "b l c2"]]:
        """What the voxels read from the tokens, and the tokens from the voxels; no residuals."""
        size = x.shape[2:]
        q, v = self.feature_qv(x).flatten(2).transpose(1, 2).chunk(2, dim=-1)  # (b, voxels, c2) each
        token_q, token_v = self.token_qv(tokens).chunk(2, dim=-1)  # (b, l, c2) each
        q, v, token_q, token_v = (self._split(t) for t in (q, v, token_q, token_v))
        # Two fused attentions instead of one explicit affinity matrix with two softmaxes: same numbers,
        # and the (voxels, tokens) matrix is never stored.
        to_features = self._join(F.scaled_dot_product_attention(q, token_q, token_v))
        to_tokens = self._join(F.scaled_dot_product_attention(token_q, q, v))
        features = to_features.transpose(1, 2).unflatten(2, size)
        return self.feature_out(features), self.token_out(to_tokens)

    def _split(self, t: Float[Tensor, "b l c"]) -> Float[Tensor, "b heads l size"]:
        return t.unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2).contiguous()

    def _join(self, t: Float[Tensor, "b heads l size"]) -> Float[Tensor, "b l c"]:
        return t.permute(0, 2, 3, 1).flatten(2)


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate computed from their spatial means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv3d(channels, channels // SQUEEZE_RATIO, 1)
        self.excite = nn.Conv3d(channels // SQUEEZE_RATIO, channels, 1)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """The gated features."""
        mean = x.mean(dim=(2, 3, 4), keepdim=True)
        gate: Tensor = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return x * gate


class InvertedBottleneck(nn.Module):
    """Point-wise expansion, depth-wise convolution, squeeze-and-excitation, linear projection, skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.expand = ConvUnit(channels, wide, kernel=1)
        self.depthwise = ConvUnit(wide, wide, groups=wide)
        self.gate = SqueezeExcitation(wide)
        self.project = ConvUnit(wide, channels, kernel=1, activate=False)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """The features after the block."""
        y: Tensor = x + self.project(self.gate(self.depthwise(self.expand(x))))
        return y


class BidirectionalBlock(nn.Module):
    """Bidirectional attention with residuals on both sides, then an inverted bottleneck on the features."""

    def __init__(self, channels_in: int, channels_out: int, *, projects_tokens: bool = True) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(channels_out, eps=TOKEN_NORM_EPS)
        self.attention = BidirectionalAttention(channels_in, channels_out, projects_tokens=projects_tokens)
        self.shortcut: nn.Module = (
            nn.Identity() if channels_in == channels_out else ConvUnit(channels_in, channels_out, kernel=1)
        )
        self.bottleneck = InvertedBottleneck(channels_out)

    def forward(
        self, x: Float[Tensor, "b c d h w"], tokens: Float[Tensor, "b l c2"]
    ) -> tuple[Float[Tensor, "b c2 d h w"], Float[Tensor, "b l c2"]]:
        """Updated features and updated tokens."""
        read, token_read = self.attention(instance_norm(x, MERGE_NORM_EPS), self.norm_tokens(tokens))
        features: Tensor = self.bottleneck(read + self.shortcut(x))
        return features, tokens + token_read


class SelfAttentionLayer(nn.Module):
    """Pre-norm transformer layer: self attention (heads slow), then a perceptron of the same width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = head_count(width)
        self.norm = nn.LayerNorm(width, eps=MAP_FUSION_NORM_EPS)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=MAP_FUSION_NORM_EPS)
        self.mlp = Mlp(width, width, width)

    def forward(self, tokens: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        """The updated tokens."""
        qkv = self.to_qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, heads, l, size) each
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.to_out(read)
        updated: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return updated
