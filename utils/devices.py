"""The device of a run."""

import logging
import os
import shutil
import time
from typing import Any

import torch
from torch import nn

from utils.errors import ConfigError
from utils.runs.environment import processor

PRODUCTS = 5e8  # multiply-adds of a timed layer at most, so that timing it takes less than a second
LONGEST = 0.5  # seconds after which no further round is timed


def resolve_device(device: str | int | list[str | int]) -> torch.device:
    """Return the torch device for the key `device`: "auto" is the first GPU or else the CPU, -1 the CPU.

    Raises:
        ConfigError: This machine does not have the device.
    """
    name = str(device[0] if isinstance(device, list) else device)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name in ("cpu", "-1") or (name == "auto" and not gpus):
        return torch.device("cpu")
    index = 0 if name in ("auto", "cuda") else int(name)
    if index >= gpus:
        there = ["auto", "cpu", "-1"] + (["cuda"] if gpus else []) + [str(gpu) for gpu in range(gpus)]
        raise ConfigError(f"device {device!r}: this machine has no GPU {index}; choose one of {', '.join(there)}")
    return torch.device("cuda", index)


def prepare_device(device: str | int | list[str | int], threads: int, deterministic: bool = False) -> torch.device:
    """Set the number of CPU threads (0: leave it) and deterministic algorithms, and return `resolve_device`.

    On a GPU, convolutions in float32 are then computed in float32, as torch's matrix products are, not in TF32.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:  # required by cuBLAS, see PyTorch's notes on reproducibility
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return resolve_device(device)


def check_compiler(device: torch.device) -> None:
    """Compile a tiny function, as the key `compile` asks for.

    Raises:
        ConfigError: torch.compile does not work on this machine, with the most likely reason.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(1, device=device))
    except Exception as error:  # torch passes on whatever its parts raise
        compiler = os.environ.get("CXX", "g++")
        found = shutil.which(compiler)
        if found is None:
            reason = f"it needs a C++ compiler, and {compiler!r} was not found; install g++, or name another one in CXX"
        elif isinstance(error, OSError):
            reason = f"{error}; TORCHINDUCTOR_CACHE_DIR can name a folder for its files"
        else:
            reason = f"the C++ compiler {found}, or the compiler of the GPU, failed on a small example; repair it"
        raise ConfigError(
            f"compile = true: torch.compile does not work here: {reason}, or set compile to false"
        ) from error


def device_record(device: torch.device) -> dict[str, Any]:
    """Return the device, threads and determinism of this process for the files of a run."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def device_name(device: torch.device) -> str:
    """Return the name of the GPU model, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def bf16_note(device: torch.device, layer: nn.Linear, tokens: int) -> tuple[int, str]:
    """Return what bfloat16 gains or costs on a device, after the level at which to log it: a warning if it costs.

    Args:
        device: A GPU is asked; on a CPU the layer is timed in both precisions, with the number of threads that is set.
        layer: A linear layer of the backbone.
        tokens: Rows of its input in a training step; fewer are timed if it is large.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return logging.INFO, f"precision bf16: {device_name(device)} has units for bfloat16"
        return logging.WARNING, f"precision bf16: {device_name(device)} has no units for bfloat16; fp32 can be faster"
    fp32, bf16 = layer_seconds(layer, min(tokens, max(1, int(PRODUCTS / layer.weight.numel()))))
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    where = f"on this processor ({processor()}; {threads})"
    text = f"precision bf16: a layer of this backbone takes {bf16 / fp32:.2g} times the time of fp32 {where}"
    return (logging.WARNING, f"{text}; precision fp32 is faster here") if bf16 > fp32 else (logging.INFO, text)


@torch.no_grad()
def layer_seconds(layer: nn.Linear, rows: int) -> tuple[float, float]:
    """Return the seconds of a layer in float32 and in bfloat16 on the CPU, each the best of two or more rounds."""
    x = torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(0))
    taken: dict[bool, list[float]] = {False: [], True: []}
    begun = time.perf_counter()
    for number in range(5):
        for reduced, seconds in taken.items():
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                started = time.perf_counter()
                layer(x)
                seconds.append(time.perf_counter() - started)
        if number and time.perf_counter() - begun > LONGEST:
            break
    return min(taken[False]), min(taken[True])
