"""Tensors read from files that may come from strangers: nothing in them is run, nothing is larger than the file.

safetensors files hold nothing but tensors; torch's are pickles, of which torch.load with weights_only=True rebuilds
tensors and plain containers and runs nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, each dense and in main memory, all together no larger than the file.

    Raises:
        Exception: Nearly any: the file is damaged, or holds something else.
    """
    refuse_packed(path)
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError("it is not a mapping of names to tensors")
    for name, tensor in tensors.items():
        _refuse_strange(str(name), tensor)
    claimed, held = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > held:  # a torch file can repeat one number, or one tensor, as often as it likes
        raise ValueError(f"its tensors claim {claimed:,} bytes, the file has {held:,}")
    return {str(name): tensor for name, tensor in tensors.items()}


def refuse_packed(path: Path) -> None:
    """Refuse a torch file with compressed parts, of which a few bytes can make any number; torch.save writes none.

    Raises:
        ValueError: It has some.
        OSError: It cannot be read.
        BadZipFile: It is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # safetensors, or torch's form of old
    with ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != ZIP_STORED]
    if packed:
        raise ValueError(f"{packed[0]} in it is compressed, which torch.save never does")


def _refuse_strange(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; expected dense floats")
    if tensor.numel() == 0 and tensor.dim() != 1:
        raise ValueError(f"{name} is of shape {tuple(tensor.shape)}, which holds nothing")
