"""The protocols and datasets behind the published networks, read from ``published.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hermes.labels.catalogue import load_yaml
from hermes.labels.names import key
from hermes.types import Modality

CAMPAIGN_PROTOCOL = "campaign"
"""The protocol of tasks that a campaign adds: a site's own way of drawing."""


@dataclass(frozen=True)
class Protocol:
    """One way of drawing a set of structures.

    Attributes:
        name: as written behind the ``@``.
        aliases: further names.
        modalities: in which it was taught.
        structures: in the order of their rows and of their label values, which count from 1.
        first_row: row of the first structure in the published tables.
        unknown_modality: how many of the structures, from the first, were also taught without a modality.
    """

    name: str
    aliases: tuple[str, ...]
    modalities: tuple[Modality, ...]
    structures: tuple[str, ...]
    first_row: int
    unknown_modality: int


@dataclass(frozen=True)
class PublishedDataset:
    """One of the training sets of the published networks.

    Attributes:
        name: of the dataset.
        protocol: by which its labels are drawn.
        modalities: of its images; empty where the modality was given as unknown.
        rows: label value in its files -> row of the published label space.
        sampling_weight: how often it is drawn in training, relative to the others.
    """

    name: str
    protocol: str
    modalities: tuple[Modality, ...]
    rows: Mapping[int, int]
    sampling_weight: float


@cache
def published_protocols() -> tuple[Protocol, ...]:
    """The ten protocols, in the order of their rows."""
    protocols: list[Protocol] = []
    row = 0
    for entry in _data()["protocols"]:
        protocols.append(
            Protocol(
                name=entry["name"],
                aliases=tuple(entry.get("aliases", ())),
                modalities=_modalities(entry["modalities"]),
                structures=tuple(entry["structures"]),
                first_row=row,
                unknown_modality=entry.get("unknown_modality", 0),
            )
        )
        row += len(entry["structures"])
    return tuple(protocols)


@cache
def published_datasets() -> tuple[PublishedDataset, ...]:
    """The eleven datasets with their label values and sampling weights."""
    protocols = {protocol.name: protocol for protocol in published_protocols()}
    datasets: list[PublishedDataset] = []
    for entry in _data()["datasets"]:
        protocol = protocols[entry["protocol"]]
        count = entry.get("structures", len(protocol.structures))
        datasets.append(
            PublishedDataset(
                name=entry["name"],
                protocol=protocol.name,
                modalities=_modalities(entry["modalities"]) if "modalities" in entry else protocol.modalities,
                rows={place + 1: protocol.first_row + place for place in range(count)},
                sampling_weight=float(entry["weight"]),
            )
        )
    return tuple(datasets)


def preferred_protocols(modality: Modality | None, *, group: str | None = None) -> tuple[str, ...]:
    """The protocols in the order in which they answer for a structure that is asked for without one."""
    preference = _data()["preference"]
    of_group = preference["groups"].get(group, ())
    of_modality = preference["modalities"].get(modality.value, ()) if modality else ()
    return tuple(dict.fromkeys((*of_group, *of_modality, *preference["default"])))


def protocol_key(name: str) -> str:
    """One key per protocol: all spellings and aliases of a protocol share it."""
    squeezed = _squeezed(name)
    return _protocol_keys().get(squeezed, squeezed)


@cache
def _protocol_keys() -> dict[str, str]:
    return {
        _squeezed(name): _squeezed(protocol.name)
        for protocol in published_protocols()
        for name in (protocol.name, *protocol.aliases)
    }


def _squeezed(name: str) -> str:
    """Protocols are acronyms: "Auto PET", "auto-pet" and "AutoPET" are one."""
    return key(name).replace(" ", "")


def _data() -> Any:
    return load_yaml("published.yaml")


def _modalities(values: list[str]) -> tuple[Modality, ...]:
    return tuple(Modality(value) for value in values)
