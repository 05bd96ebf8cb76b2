"""Prior fusion of the residual members: tokens and voxels exchange information by cross attention."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hermes.model.blocks import Mlp
from hermes.model.priors import PriorTables, Prompt

HEAD_SIZE = 32
ATTENTION_NORM_EPS = 1e-5
MLP_NORM_EPS = 1e-4
MLP_EXPANSION = 4


class CrossAttention(nn.Module):
    """Multi-head attention of normalised queries on a normalised context; heads of 32 channels.

    The inner width is ``32 * max(1, width // 32)``, laid out (heads, 32); keys come first in ``to_kv``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_SIZE)
        inner = self.heads * HEAD_SIZE
        self.norm_query = nn.LayerNorm(width, eps=ATTENTION_NORM_EPS)
        self.norm_context = nn.LayerNorm(width, eps=ATTENTION_NORM_EPS)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(
        self, query: Float[Tensor, "b q c"], context: Float[Tensor, "b k c"]
    ) -> Float[Tensor, "b q c"]:
        """What the queries read from the context, without the residual."""
        q = self._split(self.to_q(self.norm_query(query)))  # (b, heads, q, 32)
        k, v = self.to_kv(self.norm_context(context)).chunk(2, dim=-1)
        read = F.scaled_dot_product_attention(q, self._split(k), self._split(v))
        joined: Tensor = self.to_out(read.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Float[Tensor, "b l i"]) -> Float[Tensor, "b heads l 32"]:
        return x.unflatten(-1, (self.heads, HEAD_SIZE)).transpose(1, 2)


class NormMlp(nn.Module):
    """Layer norm and a two-layer perceptron of four times the width, without the residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=MLP_NORM_EPS)
        self.mlp = Mlp(width, MLP_EXPANSION * width, width)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        """The update of each token."""
        y: Tensor = self.mlp(self.norm(x))
        return y


class FusionLayer(nn.Module):
    """One exchange: tokens read the features, then the features read the updated tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_attention = CrossAttention(width)
        self.token_mlp = NormMlp(width)
        self.feature_attention = CrossAttention(width)
        self.feature_mlp = NormMlp(width)

    def forward(
        self, x: Float[Tensor, "b voxels c"], tokens: Float[Tensor, "b l c"]
    ) -> tuple[Float[Tensor, "b voxels c"], Float[Tensor, "b l c"]]:
        """Updated features and updated tokens."""
        tokens = tokens + self.token_attention(tokens, x)
        tokens = tokens + self.token_mlp(tokens)
        x = x + self.feature_attention(x, tokens)
        x = x + self.feature_mlp(x)
        return x, tokens


class PriorFusion(nn.Module):
    """A fusion level: its own prior tables and a stack of exchanges with the features of that level."""

    def __init__(self, tasks: int, modalities: int, width: int, depth: int) -> None:
        super().__init__()
        self.tables = PriorTables(tasks, modalities, width)
        self.layers = nn.ModuleList(FusionLayer(width) for _ in range(depth))

    def forward(
        self, x: Float[Tensor, "b c d h w"], prompt: Prompt
    ) -> tuple[Float[Tensor, "b c d h w"], Float[Tensor, "b l c"]]:
        """The features after the exchange, and the posterior tokens of this level."""
        tokens = self.tables(prompt)
        sequence = x.flatten(2).transpose(1, 2)  # (b, voxels, c), voxels in D, H, W order
        for layer in self.layers:
            sequence, tokens = layer(sequence, tokens)
        return sequence.transpose(1, 2).unflatten(2, x.shape[2:]), tokens
