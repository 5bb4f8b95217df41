"""The device a run uses, decided when asked and nowhere else."""

import os

import torch

from utils.errors import ConfigError


def resolve_device(device: str | int | list[str | int]) -> torch.device:
    """Turn the key `device` into a torch device that is there.

    "auto" is the first GPU or else the CPU, -1 the CPU, a number that GPU.

    Raises:
        ConfigError: The device is not on this machine; the message names those that are.
    """
    name = str(device[0] if isinstance(device, list) else device)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "0" if gpus else "cpu"
    if name in ("cpu", "-1"):
        return torch.device("cpu")
    index = 0 if name == "cuda" else int(name)
    if index >= gpus:
        there = ["auto", "cpu", "-1"] + (["cuda"] if gpus else []) + [str(gpu) for gpu in range(gpus)]
        raise ConfigError(f"device {device!r}: this machine has no GPU {index}; choose one of {', '.join(there)}")
    return torch.device("cuda", index)


def prepare_device(device: str | int | list[str | int], threads: int, deterministic: bool = False) -> torch.device:
    """`resolve_device`, with torch in this process set up for a run.

    Args:
        device: The key `device`.
        threads: CPU threads; 0: left as torch has them.
        deterministic: Whether an operation may only have the same bits every time.

    Raises:
        ConfigError: As `resolve_device`.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        # What cuBLAS needs for it, read when it is first used (PyTorch's notes on reproducibility).
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return resolve_device(device)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
