"""What the commands that time pieces of work have in common: options, setting, machine, and where figures go."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import make_parser
from benchmarks.measure import Timer
from benchmarks.workloads import Setting
from tools.generated import replace_part
from utils.devices import device_name, prepare_device
from utils.runs import environment

DOCUMENT = Path("docs/performance.md")
NEEDS_UNITS = "The figures of bf16 need a processor with units for bfloat16; without them bf16 is slower than fp32."
Report = Mapping[str, Any]


def timing_parser(name: str, description: str | None, rounds: int, place: str = "file") -> argparse.ArgumentParser:
    """The options of every command; `rounds` is the default of one, `place` what takes the figures."""
    parser = make_parser(name, description)
    parser.add_argument("--vit", default="vit_base_patch16_224", help="timm's name")
    parser.add_argument("--kwargs", type=json.loads, default={}, help='for timm.create_model: {"img_size": 96}')
    parser.add_argument("--keys", type=json.loads, default={}, help='of the configuration: {"optimizer": "adam"}')
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--rounds", type=int, default=rounds, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu, with one thread: a busy machine")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help=f"write everything measured to this {place}")
    parser.add_argument("--from", dest="earlier", type=Path, help=f"a {place} that --json wrote: measure nothing")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {DOCUMENT}")
    return parser


def publish(
    given: argparse.Namespace,
    part: str,
    measure: Callable[[Setting, Timer], dict[str, Any]],
    tables: Callable[[Report], str],
) -> None:
    """Measure, or read what was measured; print the tables, and write what the command line asks for.

    Args:
        given: The command line.
        part: Name of the tables' part of the document, before the kind of device.
        measure: Gives everything measured, JSON-ready, with what `origin` gives.
        tables: Turns that into text.
    """
    measured = json.loads(given.earlier.read_text(encoding="utf-8")) if given.earlier else measure(*place(given))
    text = tables(measured)
    print(text)
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if given.write:
        replace_part(DOCUMENT, f"{part} {measured['machine']['kind']}", text)


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
        "processor": environment.processor(),
        "threads": torch.get_num_threads(),
        "clock": timer.clock,
        "torch": torch.__version__,
        "float32_precision": torch.get_float32_matmul_precision(),
    }


def described(report: Report) -> str:
    """A sentence on setting and machine."""
    setting, where = report["setting"], report["machine"]
    kwargs = "".join(f", {key} {value}" for key, value in setting["kwargs"].items())
    processor = f" ({where['processor']})" if "processor" in where else ""  # it is not known of earlier measurements
    device = where["device"] if where["kind"] != "cpu" else f"CPU with {where['instructions']}{processor}"
    return (
        f"{setting['vit']}{kwargs}, batch {setting['batch']}, on a {device}, {where['threads']} thread(s), torch "
        f"{where['torch']}; best of {setting['rounds']} rounds by the {where['clock']} clock."
    )


def peaks(report: Report) -> str:
    """Sentences on the fastest matrix products, and on the figures that need a processor of that kind."""
    found = ", ".join(f"{peak / 1e9:,.0f} in {dtype}" for dtype, peak in report["peaks"].items())
    needed = "" if "bfloat16" not in report["peaks"] or report["machine"]["kind"] != "cpu" else f" {NEEDS_UNITS}"
    return f"Matrix products reach at best {found} billion multiply-adds a second.{needed}"
