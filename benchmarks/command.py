"""What the commands that time something have in common: options, setting, machine."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Timer
from benchmarks.workloads import Setting
from utils.devices import device_name, prepare_device

DOCUMENT = Path("docs/performance.md")


def timing_parser(prog: str, description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of every command; `rounds` is the default of one."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    parser.add_argument("--vit", default="vit_base_patch16_224", help="timm's name")
    parser.add_argument("--kwargs", type=json.loads, default={}, help='for timm.create_model: {"img_size": 96}')
    parser.add_argument("--keys", type=json.loads, default={}, help='of the configuration: {"optimizer": "adam"}')
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--rounds", type=int, default=rounds, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu, with one thread: a busy machine")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--from", dest="earlier", type=Path, help="a file that --json wrote: measure nothing")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {DOCUMENT}")
    return parser


def place(given: argparse.Namespace) -> tuple[Setting, Timer]:
    """Setting and timer that the options name, on a device made ready."""
    device = prepare_device(given.device, given.threads)
    timer = Timer(device, given.clock, repeats=5 if device.type == "cuda" else 1)
    return Setting(given.vit, given.batch, device, given.kwargs, given.keys), timer


def origin(setting: Setting, rounds: int, timer: Timer) -> dict[str, Any]:
    """What figures belong to, JSON-ready: `setting` and `machine`."""
    return {
        "setting": {"vit": setting.vit, "kwargs": dict(setting.kwargs), "batch": setting.batch, "rounds": rounds},
        "machine": machine(setting.device, timer),
    }


def machine(device: torch.device, timer: Timer) -> dict[str, Any]:
    """Where figures were measured."""
    return {
        "kind": device.type,
        "device": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "clock": timer.clock,
        "torch": torch.__version__,
        "float32_precision": torch.get_float32_matmul_precision(),
    }


def read_or(given: argparse.Namespace) -> dict[str, Any] | None:
    """The figures of an earlier run, if the command line names some."""
    return json.loads(given.earlier.read_text(encoding="utf-8")) if given.earlier else None


def keep(given: argparse.Namespace, measured: dict[str, Any]) -> None:
    """Write the figures to a file, if the command line asks for it."""
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
