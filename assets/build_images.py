"""Draw the emoji of seven free vector styles and split them into quickstart and pretraining images.

A class is a Unicode emoji subgroup (``animal-bird``, ``food-fruit``, ...). The QUICKSTART classes make
``quickstart.npz``; every other subgroup is pretraining material for ``quickstart_vit.safetensors``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

SIZE = 48
TEST_SHARE = 0.5
EMOJIBASE = "emojibase-data@17.0.0"


@dataclass(frozen=True)
class Style:
    """One vector drawing style: an npm package of the Iconify collection and what it declares."""

    name: str
    version: str
    licence: str
    author: str

    @property
    def package(self) -> str:
        """The npm package with its pinned version."""
        return f"@iconify-json/{self.name}@{self.version}"


STYLES = (
    Style("noto", "1.2.9", "Apache-2.0", "Google Inc, github.com/googlefonts/noto-emoji"),
    Style("noto-v1", "1.2.5", "Apache-2.0", "Google Inc, github.com/googlefonts/noto-emoji"),
    Style("twemoji", "1.2.5", "CC-BY-4.0", "Twitter and contributors, github.com/jdecked/twemoji"),
    Style("fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation, github.com/microsoft/fluentui-emoji"),
    Style("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation, github.com/microsoft/fluentui-emoji"),
    Style("emojione", "1.2.3", "CC-BY-4.0", "Emoji One (version 2), github.com/EmojiTwo/emojitwo"),
    Style("fxemoji", "1.2.2", "Apache-2.0", "Mozilla, github.com/mozilla/fxemoji"),
)

TASKS = (
    ("animal-bird", "animal-bug", "animal-mammal", "animal-marine", "plant-flower"),
    ("arrow", "av-symbol", "country-flag", "transport-sign", "zodiac"),
    ("food-fruit", "food-prepared", "food-sweet", "food-vegetable", "drink"),
    ("face-concerned", "face-smiling", "face-unwell", "emotion", "heart"),
    ("transport-air", "transport-ground", "place-building", "sky-weather", "time"),
    ("clothing", "musical-instrument", "tool", "person-fantasy", "person-sport"),
)
QUICKSTART = tuple(name for task in TASKS for name in task)
UNUSED = frozenset({"skin-tone", "hair-style", "regional-indicator", "subdivision-flag"})


@dataclass(frozen=True)
class Emoji:
    """What Unicode says of one emoji: its code points, English name and subgroup."""

    code: str
    label: str
    subgroup: str


@dataclass(frozen=True)
class Picture:
    """One emoji drawn in one style, as uint8 RGB pixels on white."""

    emoji: Emoji
    style: str
    pixels: np.ndarray


def normal_code(code: str) -> str:
    """Return code points in upper case without the invisible variation selector."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def slug(name: str) -> str:
    """Return a name with everything but its letters and digits removed, to match names across packages."""
    ascii_name = unicodedata.normalize("NFD", name.lower().replace("&", "and")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_name)


def read_json(path: Path) -> Any:
    """Read a JSON file, or return an empty mapping where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load_emojis(modules: Path) -> dict[str, Emoji]:
    """Read every emoji that has a Unicode subgroup, by its normalised code points."""
    subgroups = read_json(modules / "emojibase-data/meta/groups.json")["subgroups"]
    entries = read_json(modules / "emojibase-data/en/data.json")
    emojis = (
        Emoji(normal_code(entry["hexcode"]), entry["label"], subgroups[str(entry["subgroup"])])
        for entry in entries
        if "subgroup" in entry
    )
    return {emoji.code: emoji for emoji in emojis if emoji.subgroup not in UNUSED}


def icon_codes(modules: Path, style: str) -> dict[str, str]:
    """Return ``{code points: icon name}`` of a style; the two fluent sets share their names."""
    folder = modules / "@iconify-json"
    chars = read_json(folder / style / "chars.json")
    if not chars and style == "fluent-emoji":
        chars = read_json(folder / "fluent-emoji-flat" / "chars.json")
    return {normal_code(code): name for code, name in chars.items()}


def names_to_emojis(modules: Path, emojis: dict[str, Emoji]) -> dict[str, Emoji]:
    """Return the emoji of every known name: the Unicode label, then the icon names of the coded styles."""
    known: dict[str, Emoji] = {}
    for emoji in emojis.values():
        known.setdefault(slug(emoji.label), emoji)
    for style in STYLES:
        for code, name in icon_codes(modules, style.name).items():
            if code in emojis:
                known.setdefault(slug(name), emojis[code])
    return known


def find_emoji(name: str, emojis: dict[str, Emoji], named: dict[str, Emoji]) -> Emoji | None:
    """Return the emoji an icon name stands for, by name or by a ``u1f600-`` prefix."""
    prefix = re.match(r"u([0-9a-f]{4,5})-", name, re.IGNORECASE)
    return named.get(slug(name)) or (emojis.get(prefix.group(1).upper()) if prefix else None)


def match_icons(modules: Path, style: str, emojis: dict[str, Emoji], named: dict[str, Emoji]) -> dict[Emoji, str]:
    """Return the icon name of every emoji that a style draws."""
    icons = read_json(modules / "@iconify-json" / style / "icons.json")["icons"]
    codes = icon_codes(modules, style)
    found = {emojis[code]: name for code, name in codes.items() if code in emojis and name in icons}
    for name in sorted(set(icons) - set(codes.values())):
        emoji = find_emoji(name, emojis, named)
        if emoji is not None:
            found.setdefault(emoji, name)
    return {emoji: name for emoji, name in found.items() if not icons[name].get("hidden")}


def svg_text(collection: dict[str, Any], name: str, size: int) -> str:
    """Return an icon of an Iconify collection as a complete SVG document."""
    icon = {**{key: collection[key] for key in ("left", "top", "width", "height") if key in collection}}
    icon |= collection["icons"][name]
    box = (icon.get("left", 0), icon.get("top", 0), icon.get("width", 16), icon.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )


def render(svg: str, size: int) -> np.ndarray:
    """Draw an SVG document on white."""
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB"))


def draw_style(modules: Path, style: str, emojis: dict[str, Emoji], named: dict[str, Emoji]) -> Iterator[Picture]:
    """Draw every emoji of one style, in the order of the code points."""
    collection = read_json(modules / "@iconify-json" / style / "icons.json")
    matched = match_icons(modules, style, emojis, named)
    for emoji in sorted(matched, key=lambda found: found.code):
        yield Picture(emoji, style, render(svg_text(collection, matched[emoji], SIZE), SIZE))


def without_duplicates(pictures: Iterable[Picture]) -> list[Picture]:
    """Drop empty pictures and later copies of equal pixels; quickstart pictures come first and stay."""
    ordered = sorted(pictures, key=lambda picture: picture.emoji.subgroup not in QUICKSTART)
    kept: dict[bytes, Picture] = {}
    for picture in ordered:
        if picture.pixels.std() >= 2:
            kept.setdefault(picture.pixels.tobytes(), picture)
    return list(kept.values())


def draw_all(modules: Path) -> list[Picture]:
    """Draw all styles found under ``modules`` (an npm ``node_modules`` folder)."""
    emojis = load_emojis(modules)
    named = names_to_emojis(modules, emojis)
    return without_duplicates(picture for style in STYLES for picture in draw_style(modules, style.name, emojis, named))


def family(emoji: Emoji) -> str:
    """Return what must stay in one split: an emoji with its gendered and directed variants."""
    return emoji.code.split("-200D-")[0]


def test_families(pictures: Iterable[Picture]) -> set[str]:
    """Choose a fixed share of each class's emoji families for testing, by hash."""
    by_class: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        by_class[picture.emoji.subgroup].add(family(picture.emoji))
    chosen: set[str] = set()
    for members in by_class.values():
        ordered = sorted(members, key=lambda code: hashlib.sha256(code.encode()).hexdigest())
        chosen.update(ordered[: max(1, round(len(ordered) * TEST_SHARE))])
    return chosen


def quickstart_arrays(pictures: Iterable[Picture]) -> dict[str, np.ndarray]:
    """Return the arrays of ``quickstart.npz``; the label of a class is its position in QUICKSTART."""
    used = [picture for picture in pictures if picture.emoji.subgroup in QUICKSTART]
    held_out = test_families(used)
    arrays = {"class_names": np.array(QUICKSTART)}
    for split in ("train", "test"):
        chosen = [picture for picture in used if (family(picture.emoji) in held_out) == (split == "test")]
        chosen.sort(key=lambda picture: (QUICKSTART.index(picture.emoji.subgroup), picture.emoji.code, picture.style))
        arrays[f"x_{split}"] = np.stack([picture.pixels for picture in chosen])
        arrays[f"y_{split}"] = np.array([QUICKSTART.index(picture.emoji.subgroup) for picture in chosen], np.int64)
    return arrays


def pretraining_pictures(pictures: Iterable[Picture]) -> list[Picture]:
    """Return the pictures of all other classes, in a fixed order."""
    chosen = [picture for picture in pictures if picture.emoji.subgroup not in QUICKSTART]
    return sorted(chosen, key=lambda picture: (picture.emoji.subgroup, picture.emoji.code, picture.style))


def describe(pictures: Iterable[Picture]) -> dict[str, int]:
    """Return the number of pictures of each class."""
    return dict(sorted(Counter(picture.emoji.subgroup for picture in pictures).items()))
