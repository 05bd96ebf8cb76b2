"""What a training run says of itself while it runs and when it is done."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hermes.errors import HermesError


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: steps done, this one included.
        steps: of the whole run.
        loss: of this step.
        learning_rate: of this step.
        seconds: since the start of the run; a resumed run counts what it had spent before.
        idle_share: part of the time since this process started in which the device waited for data.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    idle_share: float = 0.0


@dataclass(frozen=True)
class TrainingResult:
    """What a run made, if that can be used.

    Raises:
        HermesError: the weights hold a number that is not finite.

    Attributes:
        net: the averaged weights, on the CPU, in eval mode and trainable again.
        steps: of the whole run.
        losses: of every step.
        seconds: of the whole run, without the time in which it was interrupted.
        idle_share: part of the time in which the device waited for data.
        trained_numbers: how many numbers of the network were trained.
        resumed_at: step at which an interrupted run was continued; 0: from the start.
    """

    net: nn.Module
    steps: int
    losses: list[float]
    seconds: float
    idle_share: float = 0.0
    trained_numbers: int = 0
    resumed_at: int = 0

    def __post_init__(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.net.parameters()):
            msg = "Training ended with weights that are not finite, which are thrown away. Lower `learning_rate`."
            raise HermesError(msg)
