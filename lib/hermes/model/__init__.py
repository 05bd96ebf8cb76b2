"""The universal network: ``hermes-r`` and ``hermes-m`` (published), ``hermes-c`` (compact)."""

from hermes.model.build import DEFAULT_WIDTHS, build_network, network_names
from hermes.model.heads import contract
from hermes.model.universal import (
    DIVISOR,
    Encoded,
    NetworkConfig,
    NetworkOutput,
    UniversalNetwork,
    extend_tasks,
)

__all__ = [
    "DEFAULT_WIDTHS",
    "DIVISOR",
    "Encoded",
    "NetworkConfig",
    "NetworkOutput",
    "UniversalNetwork",
    "build_network",
    "contract",
    "extend_tasks",
    "network_names",
]
