"""Published weights: the state dicts of the paper's Hermes-R and Hermes-M, loaded into our networks.

The published tables end with the null token and the unknown modality, addressed as row -1. Ours keep those
as parameters of their own, so a published table is split when it is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hermes.errors import BadRequestError, WeightsMismatchError
from hermes.model import NetworkConfig, UniversalNetwork, build_network

_SHOWN_PROBLEMS = 10

# Ours -> published, tried in order, all that match apply.
_SHARED_RULES = (
    (r"^backbone\.", ""),
    (r"^stem\.", "inc.conv1."),
    (r"^stem_block\.", "inc.conv2."),
    (r"\.unit([12])\.conv\.", r".conv\1.conv."),
    (r"^modality_head\.norm\.", "mod_out.norm."),
    (r"^modality_head\.mlp\.", "mod_out.classifier."),
    (r"\.reduce\.fc", ".classifier_pred.0.fc"),
    (r"\.refine\.fc", ".classifier_pred.1.fc"),
)
_RESIDUAL_RULES = (
    (r"^segmentation_head\.", "out."),
    (r"^(down\d)\.blocks\.0\.", r"\1.conv.1."),
    (r"^(down\d)\.blocks\.1\.", r"\1.conv.2."),
    (r"^(up\d)\.blocks\.", r"\1.conv."),
    (r"^fusions\.0\.", "prior_init_fuse_2."),
    (r"^fusions\.1\.", "prior_init_fuse_3."),
    (r"^fusions\.2\.", "prior_init_fuse_4."),
    (r"^fusions\.3\.", "prior_fuse_5."),
    (r"^fusions\.4\.", "prior_fuse_6."),
    (r"\.tables\.", "."),
    (r"\.layers\.", ".attn_layers."),
    (r"_attention\.to_", "_attention.fn.to_"),
    (r"\.token_attention\.", ".prior_aggregate_block."),
    (r"\.feature_attention\.", ".feat_aggregate_block."),
    (r"\.norm_query\.", ".norm1."),
    (r"\.norm_context\.", ".norm2."),
    (r"\.token_mlp\.", ".prior_ffn."),
    (r"\.feature_mlp\.", ".feat_ffn."),
    (r"_ffn\.mlp\.", "_ffn.fn."),
)
_MEDFORMER_RULES = (
    (r"^segmentation_head\.", "out_classifier."),
    (r"^auxiliary_head\.", "aux_classifier."),
    (r"^down1\.0\.", "down1.patch_merging."),
    (r"^down1\.1\.", "down1.conv_blocks.0."),
    (r"^down1\.2\.", "down1.conv_blocks.1."),
    (r"^(up[34])\.blocks\.", r"\1.conv_blocks."),
    (r"\.merge\.", ".patch_merging."),
    (r"\.semantic_map\.features\.", ".map_gen.base_proj."),
    (r"\.semantic_map\.attention\.", ".map_gen.semantic_proj."),
    (r"\.stage\.tables\.", ".prior_selection."),
    (r"\.stage\.blocks\.", ".trans_blocks.blocks."),
    (r"\.norm_tokens\.", ".norm2."),
    (r"\.attention\.feature_", ".attn.feat_"),
    (r"\.attention\.token_", ".attn.map_"),
    (r"\.bottleneck\.expand\.", ".feedforward.expand_proj."),
    (r"\.bottleneck\.depthwise\.", ".feedforward.depthwise."),
    (r"\.bottleneck\.gate\.squeeze\.", ".feedforward.se.excitation.0."),
    (r"\.bottleneck\.gate\.excite\.", ".feedforward.se.excitation.2."),
    (r"\.bottleneck\.project\.", ".feedforward.pointwise."),
    (r"^map_fusion\.project_in\.", "map_fusion.in_proj."),
    (r"^map_fusion\.project_out\.", "map_fusion.out_proj."),
    (r"^map_fusion\.layers\.(\d)\.norm\.", r"map_fusion.fusion.layers.\1.0.norm."),
    (r"^map_fusion\.layers\.(\d)\.to_", r"map_fusion.fusion.layers.\1.0.fn.to_"),
    (r"^map_fusion\.layers\.(\d)\.mlp_norm\.", r"map_fusion.fusion.layers.\1.1.norm."),
    (r"^map_fusion\.layers\.(\d)\.mlp\.", r"map_fusion.fusion.layers.\1.1.fn."),
)
_RULES = {
    "hermes-r": (*_SHARED_RULES, *_RESIDUAL_RULES),
    "hermes-m": (*_SHARED_RULES, *_MEDFORMER_RULES),
}
# Our name of an absence's parameters -> the published table whose last row it is.
_ABSENCES = {"null_prior": "task_prior", "unknown_modality_prior": "modality_prior"}


class PublishedNetwork(nn.Module):
    """One of our networks behind the published calling convention, where row -1 means "none"."""

    def __init__(self, network: UniversalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        image: Float[Tensor, "b 1 d h w"],
        task_rows: Int[Tensor, "b n"],
        modality_rows: Tensor,
    ) -> tuple[Float[Tensor, "b n d h w"], Float[Tensor, "b classes"]]:
        """Logits per task, and modality logits.

        Args:
            image: float32, every spatial size a multiple of 16.
            task_rows: rows of the published task tables; -1 or the last row is the null token.
            modality_rows: ``(B,)`` rows of the published modality tables; -1 or the last row is unknown.

        Raises:
            BadImageError, BadRequestError: as :meth:`hermes.model.UniversalNetwork.encode`.
        """
        config = self.network.config
        _require_rows("task", task_rows, config.tasks)
        _require_rows("modality", modality_rows, config.modalities)
        out = self.network(
            image,
            task_rows,
            modality_rows,
            task_mask=(task_rows != -1) & (task_rows != config.tasks),
            modality_known=(modality_rows != -1) & (modality_rows != config.modalities),
        )
        return out.logits, out.modality_logits


def _require_rows(kind: str, rows: Tensor, last: int) -> None:
    if rows.numel() and (int(rows.min()) < -1 or int(rows.max()) > last):
        wrong = sorted(set(rows.flatten().tolist()))
        msg = f"Expected {kind} rows from 0 to {last - 1}, or -1 (or {last}) for none, got {wrong}."
        raise BadRequestError(msg)


def load_published(state_dict: Mapping[str, Tensor], network: str) -> PublishedNetwork:
    """The published network with these weights, in evaluation mode.

    Args:
        state_dict: names and shapes as published; float32 or convertible. Its tensors are copied.
        network: ``"hermes-r"`` (any width) or ``"hermes-m"``.

    Raises:
        WeightsMismatchError: an entry that is missing, surplus, misshapen, not floating-point or not finite, named.
        BadRequestError: another ``network``.
    """
    config, weights = convert_published(state_dict, network)
    with torch.device("meta"):
        net = build_network(config)
    net.load_state_dict(weights, strict=True, assign=True)
    return PublishedNetwork(net).eval()


def convert_published(
    state_dict: Mapping[str, Tensor], network: str
) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """The configuration and the state dict of our network that equals the published one.

    The tensors are float32 copies, so that ``state_dict`` may be freed or changed. Errors as in
    :func:`load_published`.
    """
    _require_published(network)
    _require_tensors(state_dict)
    config = _read_config(state_dict, network)
    entries = _expected_entries(config)
    _require_match(state_dict, entries)
    _require_finite(state_dict)
    weights: dict[str, Tensor] = {}
    for entry in entries:
        value = state_dict[entry.published]
        if entry.ours_absence is None:
            weights[entry.ours] = _copy(value)
        else:
            weights[entry.ours] = _copy(value[:-1])
            weights[entry.ours_absence] = _copy(value[-1])
    return config, weights


def published_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict of this configuration (tables of T + 1 and M + 1 rows).

    Raises:
        BadRequestError: the network was never published.
    """
    _require_published(config.name)
    return {entry.published: entry.shape for entry in _expected_entries(config)}


def _require_published(network: str) -> None:
    if network not in _RULES:
        msg = f"Expected a published network out of {sorted(_RULES)}, got {network!r}."
        raise BadRequestError(msg)


@dataclass(frozen=True)
class _Entry:
    """A published entry and the one or two of ours that it holds (a table, and its last row)."""

    published: str
    shape: tuple[int, ...]
    ours: str
    ours_absence: str | None = None


def _copy(value: Tensor) -> Tensor:
    return value.detach().to(torch.float32, copy=True).contiguous()


def _require_tensors(state_dict: Mapping[str, Tensor]) -> None:
    wrong = [str(name) for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong or not state_dict:
        got = _listed(wrong) if wrong else "an empty one"
        msg = (
            f"Expected a state dict of tensors, got {got}. "
            "A released checkpoint holds its weights under 'ema_model_state_dict'."
        )
        raise WeightsMismatchError(msg)
    unusable = [name for name, value in state_dict.items() if value.is_meta or not value.is_floating_point()]
    if unusable:
        msg = f"Expected floating-point weights, got entries without values or of another type: {_listed(unusable)}."
        raise WeightsMismatchError(msg)


def _require_finite(state_dict: Mapping[str, Tensor]) -> None:
    broken = [name for name, value in state_dict.items() if not bool(torch.isfinite(value).all())]
    if broken:
        msg = f"Expected finite weights, got NaN or infinity in {_listed(broken)}. The file is damaged."
        raise WeightsMismatchError(msg)


def _read_config(state_dict: Mapping[str, Tensor], network: str) -> NetworkConfig:
    """Sizes by majority among several entries, so that one misshapen entry is found, not believed."""
    head = "out" if network == "hermes-r" else "out_classifier"
    widths = ["inc.conv1.weight", "inc.conv2.conv1.conv.weight", f"{head}.classifier_pred.1.fc2.weight"]
    tables = [n for n in state_dict if n.endswith(".task_prior")]
    banks = [n for n in state_dict if n.endswith(".modality_prior")]
    width = _majority(state_dict, widths, what="width")
    tasks = _majority(state_dict, tables, what="number of tasks") - 1
    modalities = _majority(state_dict, banks, what="number of modalities") - 1
    if tasks < 1 or modalities < 1 or width < 1:
        msg = f"Expected tables of at least one row and the null row, got {tables + banks}."
        raise WeightsMismatchError(msg)
    return NetworkConfig(network, width, tasks, modalities)


def _majority(state_dict: Mapping[str, Tensor], names: Iterable[str], *, what: str) -> int:
    names = list(names)
    sizes = [state_dict[n].shape[0] for n in names if n in state_dict and state_dict[n].ndim > 0]
    if not sizes:
        msg = f"Expected an entry that tells the {what} ({_listed(names) or 'a prior table'}), got none."
        raise WeightsMismatchError(msg)
    return Counter(sizes).most_common(1)[0][0]


def _expected_entries(config: NetworkConfig) -> list[_Entry]:
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in build_network(config).state_dict().items()}
    entries = []
    for ours, shape in shapes.items():
        prefix, _, leaf = ours.rpartition(".")
        if leaf in _ABSENCES:
            continue
        absence = next((a for a, table in _ABSENCES.items() if table == leaf), None)
        if absence is None:
            entries.append(_Entry(_published_name(ours, config.name), shape, ours))
        else:
            with_last_row = (shape[0] + 1, *shape[1:])
            entries.append(
                _Entry(_published_name(ours, config.name), with_last_row, ours, f"{prefix}.{absence}")
            )
    return entries


def _published_name(ours: str, network: str) -> str:
    for pattern, replacement in _RULES[network]:
        ours = re.sub(pattern, replacement, ours)
    return ours


def _require_match(state_dict: Mapping[str, Tensor], entries: list[_Entry]) -> None:
    expected = {entry.published: entry.shape for entry in entries}
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in state_dict]
    problems += [f"surplus {name}" for name in state_dict if name not in expected]
    problems += [
        f"misshapen {name}: expected {list(shape)}, got {list(state_dict[name].shape)}"
        for name, shape in expected.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    if problems:
        msg = f"The weights are not those of the published network: {_listed(problems)}."
        raise WeightsMismatchError(msg)


def _listed(items: list[str]) -> str:
    more = len(items) - _SHOWN_PROBLEMS
    return "; ".join(items[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
