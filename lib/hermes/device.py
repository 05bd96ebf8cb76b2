"""Which device and which arithmetic the network uses."""

from __future__ import annotations

import ctypes
import sys
from typing import TypeVar

import torch
from torch import nn

from hermes.errors import BadRequestError

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets this process use the memory of freed tensors again, where the C library is glibc; else nothing.

    By default glibc takes the memory of each large tensor from the kernel, page by page, and gives it back.
    On a CPU that is a third of the time of a network in full resolution (docs/BENCHMARKS.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT)


def return_freed_memory() -> None:
    """Gives what :func:`keep_freed_memory` kept back to the system."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.malloc_trim(0)


def in_fast_layout(net: NetworkT, device: torch.device) -> NetworkT:
    """``net`` itself, on ``device``, its weights in the memory layout in which that convolves fastest."""
    net = net.to(device)
    if device.type == "cpu":
        net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack 3d
    return net


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
