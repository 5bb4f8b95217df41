"""What `benchmarks.gpu_steps` measured, as tables."""

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_steps import OUT_OF_MEMORY
from benchmarks.timing import Report, described, peaks
from tools.generated import markdown_table

TARGET = 0.4  # of the peak in task 0's func steps
# Floating-point operations a second of dense products without sparsity, as the maker's data sheets have them, by the
# beginning of the card's name. float32 is computed without TF32.
DATA_SHEETS = {
    "NVIDIA H100 80GB HBM3": {"float32": 67e12, "bfloat16": 989e12},
    "NVIDIA H200": {"float32": 67e12, "bfloat16": 989e12},
    "NVIDIA A100": {"float32": 19.5e12, "bfloat16": 312e12},
}


def data_sheet(card: str) -> Mapping[str, float]:
    """Operations a second by number format; empty for a card that is not listed."""
    return next((peak for name, peak in DATA_SHEETS.items() if card.startswith(name)), {})


def utilisation(report: Report, row: Mapping[str, Any], by_data_sheet: bool = False) -> float | None:
    """Twice the multiply-adds of a second over the card's peak; None where either is unknown."""
    measured = {name: 2 * peak for name, peak in report["peaks"].items()}
    peak = (data_sheet(report["machine"]["device"]) if by_data_sheet else measured).get(row["format"])
    return 2 * row["multiply_adds"] / row["seconds"] / peak if peak and row["seconds"] else None


def steps(report: Report) -> str:
    """Where it was measured, whether the target is kept, a line for each work, and what waits for the device."""
    waits = f"\n{_waits(report['waits'])}" if "waits" in report else ""
    return "\n".join([f"{described(report)} {peaks(report)} {_verdict(report)}\n", _table(report) + waits])


def _verdict(report: Report) -> str:
    card = report["machine"]["device"]
    sheet = ", ".join(f"{peak / 1e12:g} in {name}" for name, peak in data_sheet(card).items())
    known = f"The data sheet of a {card} has {sheet} TFLOP/s." if sheet else f"No data sheet of a {card} is at hand."
    found = {
        (row["batch"], row["variant"]): utilisation(report, row, bool(sheet)) or 0.0
        for row in report["rows"]
        if row["phase"] == "func step" and row["format"] == "bfloat16"
    }
    batch, variant = max(found, key=lambda key: found[key])
    most = found[batch, variant]
    kept = "kept" if most >= TARGET else "not kept"
    return (
        f"{known} Task 0's func step reaches at most {most:.2f} of the {'data sheet' if sheet else 'measured peak'} "
        f"({variant}, batch {batch}); the target of {TARGET:g} is {kept}."
    )


def _table(report: Report) -> str:
    header = [
        "batch",
        "phase",
        "variant",
        "ms",
        "images/s",
        "reference / it",
        "MFU (measured peak)",
        "MFU (data sheet)",
    ]
    return markdown_table([*header, "peak MiB"], [_row(report, row) for row in report["rows"]])


def _row(report: Report, row: Mapping[str, Any]) -> list[str]:
    name = [str(row["batch"]), row["phase"], row["variant"]]
    if row["seconds"] is None:
        return [*name, OUT_OF_MEMORY, *[""] * 5]
    same = [r for r in report["rows"] if (r["batch"], r["phase"]) == (row["batch"], row["phase"])]
    plain = next((r["seconds"] for r in same if r["variant"] == "reference"), None)
    shares = [utilisation(report, row, by_data_sheet) for by_data_sheet in (False, True)]
    return [
        *name,
        f"{1e3 * row['seconds']:,.2f}",
        f"{row['batch'] / row['seconds']:,.0f}",
        f"{plain / row['seconds']:.2f}" if plain else "",
        *("" if share is None else f"{share:.2f}" for share in shares),
        "" if row["memory"] is None else f"{row['memory'] / 2**20:,.0f}",
    ]


def _waits(found: Mapping[str, Mapping[str, int] | None]) -> str:
    """A line for each step: whether the host waits for the device in it, and where."""
    rows = [[work, "not asked" if places is None else _places(places)] for work, places in found.items()]
    return markdown_table(["step", "waits for the device"], rows)


def _places(places: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {place}" for place, count in places.items()) or "no"


def views(report: Report) -> str:
    """Where it was measured, and a line for each place of kept views."""
    note = f"{described(report)} Views of {report['images']} images; bf16 keeps them in bfloat16.\n\n"
    header = ["kept in", "variant", "step alone, ms", "fetch alone, ms", "fetch and step, ms", "fetch and step / step"]
    return note + markdown_table(header, [[row["place"], row["variant"], *_times(row)] for row in report["rows"]])


def _times(row: Mapping[str, float]) -> list[str]:
    times = [f"{1e3 * row[name]:.2f}" for name in ("step", "fetch", "both")]
    return [*times, f"{row['both'] / row['step']:.2f}"]
