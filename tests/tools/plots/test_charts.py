"""Charts: names of lines in the legend."""

import pytest

from tools.plots.charts import Line, line_chart

LONG = "a configuration with a long name"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a", LONG], ["a", "a config…long name"]),
        ([f"{LONG}, rank {rank}, two rates" for rank in (4, 8)], ["…me, rank 4, two …", "…me, rank 8, two …"]),
        ([f"{LONG}, rank {rank}" for rank in (4, 8)], ["a config…e, rank 4", "a config…e, rank 8"]),
    ],
)
def test_long_names_are_shortened_and_stay_apart(names: list[str], shown: list[str]) -> None:
    lines = [Line(name, [0, 1], [0, 1], style) for style, name in enumerate(names)]
    figure = line_chart(lines, "x", "y", width=1.8)
    found = [text.get_text() for text in figure.legends[0].get_texts()]
    assert max(map(len, found)) <= int(10.5 * 1.8)
    assert found == shown
