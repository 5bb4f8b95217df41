"""Listed classes become stored labels; every mistake in a list gets one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.order import order_of_tasks, stored_labels, whole_order
from utils.errors import ConfigError

NAMES = ("ant", "bee", "cat", "7", "Zoë")


@given(st.permutations(range(len(NAMES))), st.data())
def test_names_and_labels_mean_the_same(order, data):
    given = [data.draw(st.sampled_from([label, NAMES[label]])) for label in order]
    assert whole_order(given, NAMES) == order
    tasks = [given[:2], given[2:3]]
    assert order_of_tasks(tasks, NAMES) == [*order[:3], *sorted(order[3:])]


def test_text_is_a_name_before_it_is_a_label():
    assert stored_labels("tasks", ["7", "0"], NAMES) == [3, 0]
    assert stored_labels("tasks", ["Zoe\u0308"], NAMES) == [4]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["ant", "beee"], 'class_order: "beee": the data set has no such class; expected the name of one of its 5 '
         "classes, or a label from 0 to 4; did you mean bee?"),
        ([5], "class_order: 5: the data set has no such class"),
        (["5"], 'class_order: "5": the data set has no such class'),
        (["9" * 5000], "the data set has no such class"),
        (["²"], "the data set has no such class"),
        (["ant", "ant"], 'class_order: "ant" (label 0) is listed twice; expected each class once'),
        (["ant", 0], 'class_order: "ant" (label 0) is listed twice, as "ant" and as 0; expected each class once'),
        (["ant", 2, "7"], "class_order: 2 of the 5 classes are missing: bee, Zoë; expected every class; the key tasks"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_refused_in_one_sentence(entries, words):
    with pytest.raises(ConfigError) as caught:
        whole_order(entries, NAMES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_of_two_tasks_is_refused_and_one_of_none_is_not():
    with pytest.raises(ConfigError, match=r'^tasks: "bee" \(label 1\) is listed twice'):
        order_of_tasks([["ant", "bee"], ["bee"]], NAMES)
    assert order_of_tasks([["cat"]], NAMES) == [2, 0, 1, 3, 4]
