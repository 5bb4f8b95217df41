"""Matching adapter parameters, tested with sizes counted by hand, formulas and whole networks.

An Adapter of bottleneck R at width D has D*R + R (down) + R*D + D (up) parameters; a nested one is two of these.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from tools.match import best_width, born, compare, main
from utils.choices import ADAPTERS
from utils.config.load import load
from utils.config.schema import Config
from utils.inc_net import SEMAVitNet

ROOT = Path(__file__).parents[2]
EXPS = ROOT / "exps"
Write = Callable[..., str]


def tiny(width: int, depth: int = 2, **keys: object) -> dict[str, object]:
    """A ViT of a given width and depth with pretrained weights that nobody has."""
    return {
        "dataset": "npz",
        "backbone_type": "vit_tiny_patch16_224_adapter",
        "backbone_checkpoint": "nowhere/vit.safetensors",
        "backbone_kwargs": {
            "img_size": 32,
            "patch_size": 16,
            "embed_dim": width,
            "depth": depth,
            "num_heads": 2,
            "mlp_ratio": 0.25,
        },
        "adapt_start_layer": 1,
        "adapt_end_layer": depth - 1,
        **keys,
    }


def nested(rank: int, **keys: object) -> dict[str, object]:
    return {"ffn_adapter_type": "nested_lora", "nested_lora_rank": rank, **keys}


def adaptmlp(bottleneck: int, **keys: object) -> dict[str, object]:
    return {"ffn_adapter_type": "adaptmlp", "ffn_num": bottleneck, **keys}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, values: dict[str, object]) -> str:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        return str(path)

    return to_file


@pytest.fixture
def match(write: Write, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run(first: dict[str, object], second: dict[str, object], *flags: str) -> tuple[int, dict[str, Any]]:
        code = main([write("first", first), "--to", write("second", second), "--format", "json", *flags])
        return code, json.loads(capsys.readouterr().out)

    return run


def functional_by_name(config: Config) -> list[int]:
    """Adapter parameters of each layer, found by the names of a whole network's parameters."""
    random = config.model_copy(update={"pretrained": False, "backbone_checkpoint": None})
    network = SEMAVitNet(random, nb_classes=3)
    layers = [0] * len(network.slots)
    for name, parameter in network.named_parameters():
        if ".functional." in name:
            layers[int(name.split(".")[2])] += parameter.numel()
    return layers


# ---- counts


@pytest.mark.parametrize(
    ("keys", "an_adapter"),
    [(adaptmlp(16), 25_360), (nested(16), 50_720), (adaptmlp(32), 49_952), (nested(8), 26_128)],
)
def test_the_known_sizes_at_width_768(keys, an_adapter):
    counts, total_at = born("x", Config(**tiny(768, **keys)))
    assert counts.d_model == 768
    assert counts.per_layer == [an_adapter, an_adapter]
    assert counts.total == total_at(counts.width) == 2 * an_adapter


@pytest.mark.parametrize("keys", [nested(3), adaptmlp(5)])
def test_counts_are_those_of_the_whole_network_at_any_width(keys):
    config = Config(**tiny(24, depth=3, **keys))
    counts, total_at = born("x", config)
    assert counts.per_layer == functional_by_name(config)
    for width in (1, 2, 7):
        assert total_at(width) == sum(
            functional_by_name(Config(**tiny(24, depth=3, **keys) | {counts.width_key: width}))
        )


def test_routers_and_descriptors_stand_beside_and_are_not_matched():
    counts, _ = born("x", Config(**tiny(24, depth=3, rd_dim=5, **nested(3))))
    assert counts.by_role == {"slow": 3 * (2 * 24 * 3 + 3 + 24), "fast": 3 * (2 * 24 * 3 + 3 + 24)}
    assert counts.beside == {"router": 3 * (24 + 1), "descriptor": 2 * (2 * 24 * 5 + 5 + 24)}
    assert (counts.adapters, counts.total) == (3, 6 * (2 * 24 * 3 + 3 + 24))


def test_every_adapter_type_names_the_key_of_its_width():
    for kind in ADAPTERS.names():
        key = ADAPTERS[kind].width_key
        sizes = [born("x", Config(**tiny(24, ffn_adapter_type=kind, **{key: width})))[0].total for width in (2, 4)]
        assert sizes[0] < sizes[1]


# ---- the best width


@given(slope=st.integers(1, 60), birth=st.integers(0, 60), target=st.integers(1, 500))
def test_no_width_is_nearer_than_the_best_and_of_two_the_smaller_is_taken(slope, birth, target):
    totals = {width: slope * width + birth for width in range(1, 600)}
    nearest = min(abs(total - target) for total in totals.values())
    smallest = next(width for width, total in totals.items() if abs(total - target) == nearest)
    assert best_width(totals.__getitem__, target) == smallest


@pytest.mark.parametrize(
    ("first", "second", "flag", "remainder", "per_cent"),
    [
        (nested(16), adaptmlp(16), "--nested_lora_rank 8", 768, "+3.03"),
        (nested(3), adaptmlp(32), "--nested_lora_rank 16", 768, "+1.54"),
        (adaptmlp(16), nested(16), "--ffn_num 32", -768, "-1.51"),
        (adaptmlp(16), nested(8), "--ffn_num 16", -768, "-2.94"),
        (nested(1), adaptmlp(17), "--nested_lora_rank 8", -769, "-2.86"),
        (adaptmlp(1), adaptmlp(7), "--ffn_num 7", 0, "+0.00"),
    ],
)
def test_the_flag_to_set_at_width_768(match, first, second, flag, remainder, per_cent):
    """The remainder is that of one adapter; each of two layers has one."""
    _, found = match(tiny(768, **first), tiny(768, **second))
    assert found["best"]["flag"] == flag
    assert found["best"]["remainder"] == 2 * remainder == found["best"]["total"] - found["second"]["total"]
    assert f"{found['best']['remainder_percent']:+.2f}" == per_cent


def test_what_the_best_flag_gives_is_what_the_network_has(match):
    first, second = tiny(24, depth=3, **nested(9)), tiny(32, **adaptmlp(11))
    _, found = match(first, second)
    total = sum(functional_by_name(Config(**first | {"nested_lora_rank": found["best"]["width"]})))
    target = sum(functional_by_name(Config(**second)))
    assert found["best"]["total"] == total
    assert found["best"]["remainder"] == total - target
    assert found["best"]["remainder_percent"] == pytest.approx((total / target - 1) * 100)


# ---- the verdict


@pytest.mark.parametrize(
    ("tolerance", "code"), [("8", 0), ("7.548", 0), ("7.547", 1), ("3.5", 1), ("0", 1), ("100", 0)]
)
def test_the_exit_code_says_whether_the_present_pair_is_within(match, tolerance, code):
    """At width 24 rank 3 has 342 parameters and bottleneck 6 has 318: 24 / 318 = 7.54716... per cent."""
    found = match(tiny(24, **nested(3)), tiny(24, **adaptmlp(6)), "--tolerance", tolerance)
    assert found[0] == code
    assert found[1]["present"]["within"] == (code == 0)


@pytest.mark.parametrize(("bottleneck", "code"), [(15, 1), (16, 0), (17, 1)])
def test_too_few_parameters_are_outside_as_too_many_are(match, bottleneck, code):
    assert match(tiny(24, **adaptmlp(bottleneck)), tiny(24, **adaptmlp(16)))[0] == code


def test_without_any_tolerance_equal_is_equal(match):
    assert match(tiny(24, **adaptmlp(4)), tiny(24, **adaptmlp(4)), "--tolerance", "0")[0] == 0


def test_the_bound_itself_is_within_exactly():
    """1,035 is 3.5 % more than 1,000; in floating point 35 / 1000 * 100 is more than 3.5."""
    counts, _ = born("x", Config(**tiny(24, **nested(3))))
    within = [compare(counts, 1, total, 1000, Decimal("3.5")).within for total in (964, 965, 1035, 1036)]
    assert within == [False, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "code", "lines"),
    [
        (
            "nested_lora_cifar",
            "sema_cifar",
            1,
            [
                "layers x parameters 12 x 50,720 12 x 25,360",
                "total before expansion 608,640 304,320 by role",
                "304,320 more (+100.00 %) than exps/sema_cifar.json, outside the tolerance of 3.5 %",
                "best --nested_lora_rank 8: 313,536 in total, 9,216 more (+3.03 %)",
            ],
        ),
        ("quickstart", "quickstart_adaptmlp", 0, ["1,152 more (+3.02 %)", "within the tolerance", "the best match"]),
    ],
)
def test_the_shipped_pairs(capsys, monkeypatch, first, second, code, lines):
    monkeypatch.chdir(ROOT)
    assert main([f"exps/{first}.json", "--to", f"exps/{second}.json"]) == code
    output = " ".join(capsys.readouterr().out.split())
    assert [line for line in lines if line not in output] == []


@pytest.mark.parametrize(("rank", "bottleneck", "per_cent"), [(8, 16, 3.03), (16, 32, 1.54)])
def test_the_groups_of_exps_are_matched_as_their_names_say(rank, bottleneck, per_cent):
    """By the formula at ViT-B/16's width; what the networks hold is tested above."""
    kinds = ("nested_lora", "equal_rates_nested_lora", "adaptmlp")
    two, equal, flat = (load(EXPS / f"pair_rank{rank}_{kind}_cifar.json") for kind in kinds)
    assert (two.nested_lora_rank, equal.nested_lora_rank, flat.ffn_num) == (rank, rank, bottleneck)
    nested_size, size = 2 * (2 * 768 * rank + rank + 768), 2 * 768 * bottleneck + bottleneck + 768
    assert round(100 * (nested_size / size - 1), 2) == per_cent


# ---- what the user sees


def test_a_consolidation_that_grows_adapters_and_a_different_network_are_said(match):
    grows = {"nested_lora_use_consolidation": True, "nested_lora_consolidation_mode": "function"}
    _, same = match(tiny(24, **nested(3)), tiny(24, **adaptmlp(6)))
    _, growing = match(tiny(24, **nested(3, **grows)), tiny(24, **adaptmlp(6, **grows)))
    _, other = match(tiny(24, **nested(3)), tiny(24, rd_dim=64, **adaptmlp(6)))
    _, of_equal_size = match(tiny(24, **nested(3, nested_lora_use_consolidation=True)), tiny(24, **adaptmlp(6)))
    scales = same["notes"]
    assert of_equal_size["notes"] == scales
    assert len(growing["notes"]) == len(other["notes"]) == 2
    assert "first.json: consolidation adds rank to the adapters" in growing["notes"][0]
    assert "routers or descriptors" in other["notes"][0]
    assert growing["notes"][1:] == other["notes"][1:] == scales


def test_the_third_configuration_is_named_that_differs_in_structure_alone(match):
    flags = ["--nested_lora_lr_slow 0.02", "--nested_lora_lr_fast 0.02", "--nested_lora_update_interval_slow 1"]
    plain, equal = adaptmlp(6, init_lr=0.02), {"nested_lora_lr_slow": 0.02, "nested_lora_lr_fast": 0.02}
    for order in (1, -1):
        _, found = match(*[tiny(24, **nested(3, init_lr=0.02)), tiny(24, **plain)][::order])
        (note,) = found["notes"]
        assert note.endswith("differs in structure alone with " + " ".join(flags))
        assert note.startswith(found["first" if order == 1 else "second"]["config"])
    _, slower = match(
        tiny(24, **nested(3, init_lr=0.02, nested_lora_update_interval_slow=5, **equal)), tiny(24, **plain)
    )
    assert len(slower["notes"]) == 1
    for first in (
        nested(3, init_lr=0.02, **equal),
        nested(3, init_lr=0.02, nested_lora_update_interval_slow=0, **equal),
    ):
        assert match(tiny(24, **first), tiny(24, **plain))[1]["notes"] == []
    assert match(tiny(24, **nested(3)), tiny(24, **nested(3)))[1]["notes"] == []


def test_when_nothing_is_near_the_nearest_is_named_and_said_to_be_outside(write, capsys):
    code = main([write("a", tiny(24, **nested(3))), "--to", write("b", tiny(24, **adaptmlp(1)))])
    assert code == 1
    assert "best --nested_lora_rank 1: 292 in total, 146 more (+100.00 %)" in (output := capsys.readouterr().out)
    assert "outside it\n" in output


def test_nothing_is_downloaded(match, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
        monkeypatch.setattr(timm.models._builder, name, refuse, raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    assert match(tiny(24, pretrained=True, backbone_checkpoint=None), tiny(24))[0] == 0


@pytest.mark.parametrize(
    ("keys", "named"), [({"ffn_nun": 3}, "ffn_num"), ({"adapt_end_layer": 5}, "adapt_end_layer"), (None, "no such")]
)
def test_what_the_user_can_put_right_ends_with_2(write, capsys, keys, named):
    path = "nowhere.json" if keys is None else write("bad", tiny(24) | keys)
    assert main([write("good", tiny(24)), "--to", path]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert not captured.out


@pytest.mark.parametrize("tolerance", ["-1", "101", "nan", "some"])
def test_a_tolerance_is_a_per_cent(capsys, tolerance):
    with pytest.raises(SystemExit, match="2"):
        main(["a.json", "--to", "b.json", f"--tolerance={tolerance}"])
    assert "expected a per cent from 0 to 100" in capsys.readouterr().err


def test_help_and_errors_of_the_configuration_answer_without_torch():
    code = (
        "import sys; from tools.match import main; main(['no.json', '--to', 'no.json']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "no.json" in done.stderr


def test_a_learner_that_trains_no_adapters_is_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    linear, other = write("linear", tiny(48, model_name="linear")), write("a", tiny(48, **adaptmlp(4)))
    assert main([other, "--to", linear]) == 2
    assert "linear.json: model_name linear trains no adapters, so there is nothing to match" in capsys.readouterr().err


def test_the_third_configuration_has_the_rates_of_the_branches_that_learn(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = write("fast", tiny(48, **nested(2, nested_lora_train=["fast"], nested_lora_update_interval_slow=5)))
    main([fast, "--to", write("a", tiny(48, **adaptmlp(4))), "--tolerance", "100"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "as a third configuration" in line]
    assert note.endswith("it differs in structure alone with --nested_lora_lr_fast 0.005")
