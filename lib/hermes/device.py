"""Which device and which arithmetic the network uses."""

from __future__ import annotations

import torch

from hermes.errors import BadRequestError


def choose_device(name: str) -> torch.device:
    """``auto``: the first GPU, else the CPU.

    Raises:
        BadRequestError: a GPU is named and this machine has none of that number.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        msg = f"Expected one of the {torch.cuda.device_count()} GPUs of this machine, got {name!r}. Set `device` to auto."
        raise BadRequestError(msg)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """``auto``: bf16 where the hardware multiplies it natively, else fp32.

    On CPUs with AMX tiles bf16 autocast is about twice as fast as fp32; without them it is slower.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
