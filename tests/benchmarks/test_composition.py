"""How often a run goes through each phase, against numbers worked out by hand."""

from collections import Counter

import pytest

from benchmarks.composition import Run, our_counts, plain_counts, room_for, total

SMALL = Run(expands=(True, False), train_images=10, test_images=4, func_epochs=2, rd_epochs=3)


def test_a_small_run_the_plain_way_by_hand():
    assert plain_counts(SMALL) == {
        "func step": 2 * 10,
        "rd step": 3 * 10,
        "scan": 2 * 10 + 10,  # twice with the expansion, once without
        "func step, one expansion": 2 * 10,
        "rd step, one expansion": 3 * 10,
        "func step, no expansion": 2 * 10,
        # After five epochs, five and two, and at each task's end, on the 4, 8 and 12 images seen by then.
        "evaluation": 6 * 4 + 6 * 8 + 3 * 12,
    }


def test_ours_scores_once_a_task_and_again_what_it_kept():
    counted = our_counts(SMALL, kept=6, batch=3)
    # Of the 4 images seen before task 1 one batch of 3 was kept; of the 8 before task 2 two, the 6 there is room for.
    assert counted["evaluation, seen before"] == 3 + 6
    assert counted["evaluation"] == 4 + (8 - 3) + (12 - 6)
    plain = plain_counts(SMALL)
    assert {p: n for p, n in counted.items() if "step" in p or p == "scan"} == {
        p: n for p, n in plain.items() if p != "evaluation"
    }


@pytest.mark.parametrize(("views", "computed"), [(0, 3), (2, 2), (3, 3), (9, 3)])
def test_views_replace_the_images_of_later_epochs(views, computed):
    counted = our_counts(SMALL, kept=0, batch=3, views=views)
    for phase, ending in (("rd step", ""), ("rd step, one expansion", ", view kept" if views else "")):
        assert counted[f"{phase}{ending}"] == 10 * computed
        assert counted[f"{phase}, means kept"] == 10 * (3 - computed)
    assert counted["evaluation, seen before"] == 0


@pytest.mark.parametrize(("views", "expanding", "reading"), [(1, 1, 1), (2, 2, 2), (3, 3, 2), (9, 3, 2)])
def test_with_views_later_tasks_compute_the_lower_blocks_once_a_view(views, expanding, reading):
    counted = our_counts(SMALL, kept=0, batch=3, views=views)
    assert counted["view"] == 10 * (expanding + reading)  # task 1 has 2 and 3 epochs, task 2 has 2
    assert counted["scan, view kept"] == 2 * 10 + 10
    assert counted["func step, one expansion, view kept"] == 2 * 10
    assert counted["features"] == 10 * reading
    assert counted["func step, no expansion, features kept"] == 2 * 10
    assert not {"scan", "func step, one expansion", "func step, no expansion"} & (+counted).keys()
    assert counted["func step"] == 2 * 10


def test_the_default_is_the_published_run_and_its_order_the_mean_of_all():
    run = Run()
    assert len(run.tasks) == 10
    assert sum(run.expands) == 6
    counted = plain_counts(run)
    assert counted["func step"] + counted["func step, one expansion"] + counted["func step, no expansion"] == 250_000
    assert counted["rd step"] + counted["rd step, one expansion"] == 7 * 20 * 5000
    # A task of mean place: 6 of 9 have 25 epochs, 3 have 5; tasks 1 to 9 have seen 2 to 10 thousand images.
    mean_epochs = (6 * 25 + 3 * 5) / 9
    assert counted["evaluation"] == 1000 * (25 + mean_epochs * sum(range(2, 11)) + sum(range(1, 11)))


def test_orders_change_what_is_scored_and_nothing_else():
    run = Run()
    first, last = (plain_counts(run.in_order(expanding_first)) for expanding_first in (True, False))
    assert run.in_order(True).expands == (True,) * 6 + (False,) * 3
    assert first["evaluation"] < plain_counts(run)["evaluation"] < last["evaluation"]
    assert {p: n for p, n in first.items() if p != "evaluation"} == {p: n for p, n in last.items() if p != "evaluation"}


def test_room_is_that_of_whole_batches():
    assert room_for(1, 2**20, 100) == 1000  # 1024 images fit
    assert room_for(0, 2**20, 100) == 0


def test_a_total_is_images_times_what_one_costs():
    assert total(Counter({"scan": 3, "rd step": 2, "forward": 0}), {"scan": 5.0, "rd step": 0.5}) == 16.0
