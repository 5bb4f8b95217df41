"""Draw the method for the README, as SVG. `python -m tools.docs` writes the file.

Each shape is one line of SVG. Coordinates are pixels from the upper left corner. The y of a text is its middle.
"""

from collections.abc import Iterator
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1000, 690
INK, RULE, FROZEN, SLOT, SLOW, FAST = "#24292f", "#8c959f", "#dfe3e8", "#fff1d6", "#9ecae9", "#f7b6a0"
STEPS_PER_TASK, INTERVAL = 20, 5


HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif">
<title>A transformer block with a slot of adapters, one Nested LoRA adapter, and its two time scales</title>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="white"/>"""


def method() -> str:
    """Return the drawing: a block, its slot, one adapter, and when slow and fast learn."""
    return "\n".join([HEAD, *block(), *slot(), *nested_adapter(), *time_axis(), "</svg>"]) + "\n"


def text(x: float, y: float, words: str, size: int = 15, weight: str = "normal", anchor: str = "middle") -> str:
    """One line of text."""
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" dominant-baseline="central"'
    return f'<text x="{x:g}" y="{y:g}" {style} fill="{INK}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, *lines: str) -> str:
    """A rectangle with lines of text in its middle."""
    first = y + height / 2 - 9 * (len(lines) - 1)
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" stroke="{INK}"/>'
    return frame + "".join(text(x + width / 2, first + 18 * number, line, 14) for number, line in enumerate(lines))


def line(*points: tuple[float, float], arrow: bool = True) -> str:
    """A line through points."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    more = ' marker-end="url(#head)"' * arrow
    return f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5"{more}/>'


def sum_sign(x: float, y: float) -> str:
    """A plus in a circle."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="white" stroke="{INK}"/>' + text(x, y, "+", 18)


def frame(x: float, y: float, width: float, height: float, dashed: bool = False) -> str:
    """An empty rectangle behind shapes that belong together."""
    more = ' stroke-dasharray="5 4"' * dashed
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="none" stroke="{RULE}"{more}/>'


def panel(x: float, y: float, width: float, height: float, title: str) -> str:
    """A frame with a title in it."""
    return frame(x, y, width, height) + text(x + 14, y + 20, title, 16, "bold", "start")


def mark(x: float, y: float, fill: str) -> str:
    """A step at which a branch moves."""
    return f'<rect x="{x - 4:g}" y="{y - 14:g}" width="8" height="28" rx="2" fill="{fill}" stroke="{INK}"/>'


def block() -> Iterator[str]:
    """A transformer block, read from below, with the slot beside its MLP."""
    yield panel(15, 15, 240, 395, "A block of the ViT")
    yield text(100, 394, "x")
    yield line((100, 384), (100, 352))
    yield box(45, 310, 110, 40, FROZEN, "attention")
    yield line((100, 310), (100, 283))
    yield line((100, 370), (30, 370), (30, 270), (87, 270))
    yield sum_sign(100, 270)
    yield line((100, 258), (100, 182))
    yield text(112, 246, "h", anchor="start")
    yield box(45, 140, 110, 40, FROZEN, "MLP")
    yield line((100, 140), (100, 113))
    yield line((100, 220), (30, 220), (30, 100), (87, 100))
    yield box(170, 140, 72, 40, SLOT, "slot")
    yield line((100, 220), (206, 220), (206, 182))
    yield line((206, 140), (206, 100), (113, 100))
    yield sum_sign(100, 100)
    yield line((100, 88), (100, 66))
    yield text(100, 55, "y")
    yield text(170, 321, "grey:", 13, anchor="start")
    yield text(170, 339, "frozen", 13, anchor="start")


def slot() -> Iterator[str]:
    """The slot: adapters with their descriptors, and the router that mixes them."""
    yield panel(270, 15, 410, 395, "The slot: several adapters, one router")
    yield text(284, 60, "A descriptor notices images unlike those of its adapter.", 13, anchor="start")
    yield text(284, 78, "If all of them do, the slot gets a new adapter.", 13, anchor="start")
    yield text(476, 110, "output of the slot")
    yield line((476, 150), (476, 120))
    yield box(284, 150, 384, 40, "white", "weighted sum")
    for number, x in enumerate((284, 384, 484), start=1):
        yield frame(x, 226, 92, 124, dashed=number == 3)
        yield box(x + 4, 230, 84, 56, SLOT, "adapter", str(number))
        yield box(x + 4, 294, 84, 52, "white", "descriptor", str(number))
        yield line((x + 46, 226), (x + 46, 192))
        yield line((x + 46, 372), (x + 46, 352))
    yield box(588, 230, 80, 56, SLOT, "router")
    yield line((628, 230), (628, 192))
    yield text(620, 212, "weights", 13, anchor="end")
    yield line((330, 372), (628, 372), (628, 288))
    yield text(476, 396, "h")
    yield line((476, 386), (476, 372), arrow=False)


def nested_adapter() -> Iterator[str]:
    """One adapter opened: slow and fast, summed."""
    yield panel(695, 15, 290, 395, "A Nested LoRA adapter")
    yield text(709, 60, "Slow: low rate, moves at every k-th step", 13, anchor="start")
    yield text(709, 78, "Fast: high rate, moves at every step", 13, anchor="start")
    yield text(840, 110, "slow(h) + fast(h)")
    yield line((840, 139), (840, 120))
    yield sum_sign(840, 151)
    for x, inner, name, fill in ((768, 828, "Slow", SLOW), (912, 852, "Fast", FAST)):
        yield line((x, 206), (x, 151), (inner, 151))
        yield box(x - 55, 206, 110, 36, fill, "up: r → D")
        yield line((x, 302), (x, 244))
        yield text(x + 8, 273, "ReLU", 13, anchor="start")
        yield text(x - 12, 273, name, 15, "bold", "end")
        yield box(x - 55, 302, 110, 36, fill, "down: D → r")
        yield line((840, 372), (x, 372), (x, 340))
    yield text(840, 396, "h")
    yield line((840, 386), (840, 372), arrow=False)


def time_axis() -> Iterator[str]:
    """The optimizer steps of two tasks: when fast moves, when slow moves, and consolidation between the tasks."""
    yield panel(15, 425, 970, 250, "The two time scales")
    for y, name, when in ((510, "Fast", "every step"), (570, "Slow", "every k-th step")):
        yield text(30, y - 9, name, 15, "bold", "start")
        yield text(30, y + 9, when, 13, anchor="start")
    for task, start in enumerate((150, 540), start=1):
        yield text(start + 157, 642, f"task {task}")
        for step in range(1, STEPS_PER_TASK + 1):
            x = start + 15 * step
            yield mark(x, 510, FAST)
            if step % INTERVAL == 0:
                yield mark(x, 570, SLOW)
            yield line((x, 620), (x, 625), arrow=False)
        yield line((start + 345, 510), (start + 345, 570))
        yield text(start + 345, 470, "consolidation", 13)
        yield text(start + 345, 487, "(optional)", 13)
    yield line((140, 620), (965, 620))
    yield text(965, 642, "optimizer steps", 13, anchor="end")
