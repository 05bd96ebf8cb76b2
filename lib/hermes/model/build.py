"""Name to network: the only place that knows which members the family has."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hermes.errors import BadRequestError
from hermes.model.compact import CompactBackbone
from hermes.model.medformer import MedFormerBackbone
from hermes.model.residual import ResidualBackbone
from hermes.model.universal import NetworkConfig, UniversalNetwork, extend_tasks

__all__ = ["DEFAULT_WIDTHS", "NetworkConfig", "build_network", "extend_tasks", "network_names"]

_BACKBONES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "hermes-r": ResidualBackbone,
    "hermes-m": MedFormerBackbone,
    "hermes-c": CompactBackbone,
}

DEFAULT_WIDTHS = {"hermes-r": 32, "hermes-m": 32, "hermes-c": 8}
"""Base width of each member when nobody asks for another."""

_MOST = {"width": 1024, "tasks": 65_535, "modalities": 255}


def network_names() -> list[str]:
    """The members of the family."""
    return list(_BACKBONES)


def build_network(config: NetworkConfig) -> UniversalNetwork:
    """A freshly initialised network; the global torch seed decides the weights.

    Raises:
        BadRequestError: no member has this name, or a size is none that it can have.
    """
    if config.name not in network_names():
        msg = f"Expected a network out of {network_names()}, got {config.name!r}."
        raise BadRequestError(msg)
    for name, most in _MOST.items():
        size = getattr(config, name)
        if type(size) is not int or not 1 <= size <= most:
            msg = f"Expected the {name} of a network as a whole number from 1 to {most}, got {size!r}."
            raise BadRequestError(msg)
    backbone = _BACKBONES[config.name](config.width, config.tasks, config.modalities)
    return UniversalNetwork(config, backbone)
