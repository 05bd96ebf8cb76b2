"""``hermes-m``: the MedFormer backbone of the paper (METHOD section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hermes.model.attention import BidirectionalBlock, PatchMerging, SelfAttentionLayer, SemanticMap
from hermes.model.blocks import ResidualBlock, upsample_to
from hermes.model.priors import PriorTables, Prompt
from hermes.model.residual import UpLevel
from hermes.model.universal import BackboneOutput

MAP_TOKENS = 64
ENCODER_DEPTHS = (2, 4, 8)
DECODER_DEPTHS = (4, 2)
MAP_FUSION_DEPTH = 2


class AttentionStage(nn.Module):
    """Attention blocks on features and on ``[semantic map (64), priors (n + 10)]``."""

    def __init__(
        self, channels_in: int, channels_out: int, depth: int, tables: PriorTables, *, is_last: bool = False
    ) -> None:
        super().__init__()
        self.tables = tables
        self.blocks = nn.ModuleList(
            BidirectionalBlock(
                channels_in if i == 0 else channels_out,
                channels_out,
                projects_tokens=not (is_last and i == depth - 1),
            )
            for i in range(depth)
        )

    def forward(
        self, x: Float[Tensor, "b c d h w"], semantic_map: Float[Tensor, "b 64 c2"], prompt: Prompt
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features, semantic map ``(B, 64, C)`` and posterior ``(B, n + 10, C)`` after the blocks."""
        priors = self.tables(prompt)
        tokens = torch.cat([semantic_map.to(priors.dtype), priors], dim=1)
        for block in self.blocks:
            x, tokens = block(x, tokens)
        return x, tokens[:, :MAP_TOKENS], tokens[:, MAP_TOKENS:]


class EncoderStage(nn.Module):
    """Patch merging, a semantic map of the merged features, attention blocks."""

    def __init__(self, channels_in: int, channels_out: int, depth: int, tables: PriorTables) -> None:
        super().__init__()
        self.merge = PatchMerging(channels_in, channels_out)
        self.semantic_map = SemanticMap(channels_out, MAP_TOKENS)
        self.stage = AttentionStage(channels_out, channels_out, depth, tables)

    def forward(self, x: Float[Tensor, "b c d h w"], prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
        """Features at half the resolution, their semantic map, and the posterior of the level."""
        x = self.merge(x)
        features, semantic_map, posterior = self.stage(x, self.semantic_map(x), prompt)
        return features, semantic_map, posterior


class DecoderStage(nn.Module):
    """Up-sample, concatenate ``[upsampled, skip]``, reduce two maps to one, attention blocks."""

    def __init__(
        self,
        channels: tuple[int, int, int],
        depth: int,
        tables: PriorTables,
        *,
        is_last: bool = False,
    ) -> None:
        """``channels``: width below, width of the skip and of its map, width of the result."""
        super().__init__()
        low, skip, out = channels
        self.map_reduction = nn.Linear(low + skip, out, bias=False)
        self.stage = AttentionStage(low + skip, out, depth, tables, is_last=is_last)

    def forward(
        self,
        low: Float[Tensor, "b c d h w"],
        skip: Float[Tensor, "b c2 d2 h2 w2"],
        maps: tuple[Tensor, Tensor],
        prompt: Prompt,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features at the resolution of ``skip``, their semantic map, and the posterior of the level."""
        x = torch.cat([upsample_to(low, skip.shape[2:]), skip], dim=1)
        features, semantic_map, posterior = self.stage(x, self.map_reduction(torch.cat(maps, dim=-1)), prompt)
        return features, semantic_map, posterior


class MapFusion(nn.Module):
    """The semantic maps of the encoder stages exchange information in one transformer."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.project_in = nn.ModuleList(nn.Linear(w, width, bias=False) for w in widths)
        self.layers = nn.Sequential(*(SelfAttentionLayer(width) for _ in range(MAP_FUSION_DEPTH)))
        self.project_out = nn.ModuleList(nn.Linear(width, w, bias=False) for w in widths)

    def forward(self, maps: Sequence[Float[Tensor, "b 64 c"]]) -> list[Float[Tensor, "b 64 c"]]:
        """One fused map per stage, each of its stage's width."""
        tokens = torch.cat([p(m) for p, m in zip(self.project_in, maps, strict=True)], dim=1)
        fused = self.layers(tokens).split(MAP_TOKENS, dim=1)
        return [p(m) for p, m in zip(self.project_out, fused, strict=True)]


class MedFormerBackbone(nn.Module):
    """MedFormer of five resolutions; ``width`` 32 is the published network."""

    def __init__(self, width: int, tasks: int, modalities: int) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = width, 2 * width, 4 * width, 8 * width, 10 * width
        self.fusion_widths: Sequence[int] = (c3, c4, c5, c4, c3)
        self.feature_width = c1
        self.auxiliary_width: int | None = c3
        t3, t4, t5, t4_up, t3_up = (PriorTables(tasks, modalities, c) for c in self.fusion_widths)
        self.stem = nn.Conv3d(1, c1, 3, padding=1, bias=False)
        self.stem_block = ResidualBlock(c1, c1)
        self.down1 = nn.Sequential(PatchMerging(c1, c2), ResidualBlock(c2, c2), ResidualBlock(c2, c2))
        self.down2 = EncoderStage(c2, c3, ENCODER_DEPTHS[0], t3)
        self.down3 = EncoderStage(c3, c4, ENCODER_DEPTHS[1], t4)
        self.down4 = EncoderStage(c4, c5, ENCODER_DEPTHS[2], t5)
        self.map_fusion = MapFusion((c3, c4, c5), c5)
        self.up1 = DecoderStage((c5, c4, c4), DECODER_DEPTHS[0], t4_up)
        self.up2 = DecoderStage((c4, c3, c3), DECODER_DEPTHS[1], t3_up, is_last=True)
        self.up3 = UpLevel(c3, c2, c2, skip_first=False)
        self.up4 = UpLevel(c2, c1, c1, skip_first=False)

    def forward(self, image: Float[Tensor, "b 1 d h w"], prompt: Prompt) -> BackboneOutput:
        """Full-resolution features, the posteriors of the five levels, quarter-resolution features."""
        x1 = self.stem_block(self.stem(image))  # (b, c, d, h, w)
        x2 = self.down1(x1)  # (b, 2c, d/2, h/2, w/2)
        x3, map3, p3 = self.down2(x2, prompt)  # (b, 4c, d/4, ...)
        x4, map4, p4 = self.down3(x3, prompt)  # (b, 8c, d/8, ...)
        x5, map5, p5 = self.down4(x4, prompt)  # (b, 10c, d/16, ...)
        map3, map4, map5 = self.map_fusion((map3, map4, map5))
        y4, map_up, p6 = self.up1(x5, x4, (map5, map4), prompt)
        y3, _, p7 = self.up2(y4, x3, (map_up, map3), prompt)
        features = self.up4(self.up3(y3, x2), x1)  # (b, c, d, h, w)
        return BackboneOutput(features, (p3, p4, p5, p6, p7), auxiliary_features=y3)
