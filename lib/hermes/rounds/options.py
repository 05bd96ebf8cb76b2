"""What can be chosen for one round; the settings say what holds where a request is silent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hermes.config import Settings
from hermes.types import StructureName

MODES = ("full", "decoder", "priors")
"""What a round trains: the whole network, all but its encoder, or the rows of new structures and nothing else."""

KEEPS = ("named", "all")
"""What a round keeps beside what it learns: the structures that the campaign names, or all that the model knows."""


@dataclass(frozen=True)
class RoundOptions:
    """The choices of one round.

    Attributes:
        steps: optimiser steps; None: as many as suit device and labels.
        mode: one of `MODES`.
        replay: how often a case whose label taught an earlier version is drawn beside one with a new label; 1: as often,
            but what is only rehearsed takes half of the draws at most.
        distil: weight of the loss that keeps what earlier versions say where nobody annotated, or lately; 0: none.
        keep: one of `KEEPS`.
        structures: that the round is for: it is refused when one of them occurs in no case.
    """

    steps: int | None = None
    mode: str = "full"
    replay: float = 1.0
    distil: float = 2.0
    keep: str = "named"
    structures: tuple[StructureName, ...] = ()

    def within(self, settings: Settings) -> Settings:
        """The settings, with the choices of this round."""
        return replace(
            settings, train_steps_per_round=self.steps, train_mode=self.mode, replay=self.replay, distil=self.distil,
            keep=self.keep,
        )  # fmt: skip

    @classmethod
    def of(cls, settings: Settings) -> RoundOptions:
        """What the settings say."""
        return cls(
            steps=settings.train_steps_per_round, mode=settings.train_mode, replay=settings.replay,
            distil=settings.distil, keep=settings.keep,
        )  # fmt: skip
