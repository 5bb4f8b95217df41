"""The recipes of docs/extending.md, followed to the letter in a copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
from glob import glob
from pathlib import Path
from typing import NamedTuple

import forked
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {
    "dataset": "npz",
    "data_root": "tests/recorded/images.npz",
    "backbone_type": "vit_tiny_patch16_224_adapter",
    "pretrained": False,
    "backbone_kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "device": "cpu",
    "num_workers": 0,
    "num_threads": 1,
    "seed": [4],
    "init_cls": 2,
    "increment": 2,
    "max_tasks": 2,
    "ffn_num": 5,
    "nested_lora_rank": 2,
    "nested_lora_update_interval_slow": 3,
    "adapt_start_layer": 1,
    "adapt_end_layer": 1,
    "rd_dim": 2,
    "buffer_size": 10,
    "batch_size": 4,
    "detect_batch_size": 4,
    "func_epoch": 1,
    "rd_epoch": 1,
    "exp_threshold": 0.5,
    "nested_lora_use_consolidation": True,
    "nested_lora_consolidation_mode": "function",
}
STOPPING = """
import os, signal, sys
import main, trainer
account = trainer.Run._account_for
def stopping(run, task):
    account(run, task)
    os.kill(os.getpid(), signal.SIGTERM)
trainer.Run._account_for = stopping
sys.exit(main.main(sys.argv[1:]))
"""


class Block(NamedTuple):
    """A fenced block: its language, the file it names, its text."""

    language: str
    file: str
    text: str


def recipes() -> dict[str, list[Block]]:
    sections = (ROOT / "docs" / "extending.md").read_text().split("\n## ")[1:]
    return {section.partition("\n")[0]: [Block(*found) for found in FENCE.findall(section)] for section in sections}


class Copy:
    """A copy of the repository in which a recipe is followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("backbone", "models", "utils", "tools", "tests/recorded"):
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("main.py", "trainer.py", "eval.py"):
            shutil.copy(ROOT / name, path / name)
        (path / "exps").mkdir()
        for name, kind in (("quickstart", "nested_lora"), ("quickstart_adaptmlp", "adaptmlp")):
            (path / "exps" / f"{name}.json").write_text(json.dumps({**RUN, "ffn_adapter_type": kind}))

    def follow(self, blocks: list[Block]) -> tuple[int, int]:
        """Create files and apply changes; how many files and lines that are."""
        files, lines = set(), 0
        for block in blocks:
            if block.language == "python":
                (self.path / block.file).write_text(block.text)
                files.add(block.file)
                lines += len(block.text.splitlines())
            elif block.language == "diff":
                command = ["git", "apply", "--recount", "--whitespace=nowarn", "-"]
                outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(self.path.parent)}
                subprocess.run(command, input=block.text, cwd=self.path, env=outside, check=True, text=True)
                files |= set(re.findall(r"^\+\+\+ b/(\S+)$", block.text, re.MULTILINE))
                lines += len(re.findall(r"^\+[^+]", block.text, re.MULTILINE))
        return len(files), lines

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(self.path)}
        return forked.python(arguments, self.path, environment, self.path.parent)

    def shell(self, text: str) -> str:
        """Run the lines of a block, each of which is to succeed; what they print."""
        printed = ""
        for line in text.splitlines():
            first, *words = shlex.split(line)
            assert first == "python"
            found = [(sorted(glob(str(self.path / word))) or [word]) if "*" in word else [word] for word in words]
            done = self.python(*(name for names in found for name in names))
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
        return printed

    @property
    def results(self) -> dict[str, object]:
        (file,) = self.path.glob("logs/**/results.json")
        return dict(json.loads(file.read_text()))


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "a copy")


def commands(blocks: list[Block]) -> str:
    return "".join(block.text for block in blocks if block.language == "bash")


def test_the_recipes_are_these():
    assert list(recipes()) == ["An adapter type", "A third time scale", "A learner", "A data set", "A measure"]


@pytest.mark.slow
def test_an_adapter_type_is_one_file_of_at_most_30_lines(copy):
    recipe = recipes()["An adapter type"]
    files, lines = copy.follow(recipe)
    assert (files, lines <= 30) == (1, True)
    printed = copy.shell(commands(recipe))
    assert "my_lora" in printed
    tasks = copy.results["tasks"]
    layers, width, rank = 2, 16, RUN["ffn_num"]
    assert tasks[0]["parameters"]["adapter"] == layers * 2 * width * rank
    (checkpoint,) = copy.path.glob("logs/**/checkpoints/task_1.safetensors")
    unnamed = copy.python("main.py", "--eval", "--checkpt_path", str(checkpoint))
    assert unnamed.returncode == 2
    assert "name that file with --plugin my_lora.py" in unnamed.stderr


@pytest.mark.slow
def test_a_run_with_an_adapter_of_one_s_own_goes_on_with_the_same_file_only(copy):
    copy.follow(recipes()["An adapter type"])
    flags = ("--plugin", "my_lora.py", "--config", "exps/quickstart.json", "--ffn_adapter_type", "my_lora")
    whole = copy.python("main.py", *flags, "--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr
    stopped = copy.python("-c", STOPPING, *flags)
    assert stopped.returncode == 143, stopped.stderr
    (run,) = (copy.path / "logs").iterdir()
    without = copy.python("main.py", "--resume", str(run))
    assert (without.returncode, "name that file with --plugin my_lora.py" in without.stderr) == (2, True)
    plugin = copy.path / "my_lora.py"
    text = plugin.read_text()
    plugin.write_text(f"{text}\n")
    for how in (("--resume", str(run)), (*flags[2:], "--auto_resume")):
        changed = copy.python("main.py", "--plugin", "my_lora.py", *how)
        assert (changed.returncode, "its content has changed" in changed.stderr) == (2, True), changed.stderr
    plugin.write_text(text)
    resumed = copy.python("main.py", "--plugin", "my_lora.py", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    (expected,) = copy.path.glob("whole/*/results.json")
    values = json.loads(expected.read_text())
    assert {**copy.results, "run": None} == {**values, "run": None}


@pytest.mark.slow
def test_a_third_time_scale_is_at_most_four_files(copy):
    recipe = recipes()["A third time scale"]
    files, lines = copy.follow(recipe)
    assert (files <= 4, lines <= 10) == (True, True)
    copy.shell(commands(recipe))
    branches = copy.results["branches"]
    assert list(branches) == ["slow+mid+fast", "slow+mid", "slow+fast", "mid+fast", "slow", "mid", "fast", "neither"]
    (metrics,) = copy.path.glob("logs/**/metrics.jsonl")
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    func = [event for event in events if event["kind"] == "phase" and event["phase"] == "func"]
    rates = {group["name"]: group["lr"] for group in func[0]["groups"]}
    assert rates == {"slow": 0.001, "mid": 0.003, "fast": 0.01, "other": 0.005}
    audits = [event for event in events if event["kind"] == "cadence" and event["task"] == 0]
    assert {event["scale"]: event["observed"] for event in audits} == {"slow": [3], "mid": [2, 4]}
    receipts = next(event for event in events if event["kind"] == "consolidation")["receipts"]
    assert {key for key in receipts[0] if key.endswith("_rank_after")} == {"slow_rank_after", "mid_rank_after"}
    page = (copy.path / "report.html").read_text()
    assert "mid only" in page


@pytest.mark.slow
def test_a_learner_is_one_file(copy):
    recipe = recipes()["A learner"]
    assert copy.follow(recipe)[0] == 1
    copy.shell(commands(recipe))
    assert copy.results["tasks"][1]["trained"] == {}


@pytest.mark.slow
def test_a_data_set_is_one_entry(copy):
    recipe = recipes()["A data set"]
    rng = np.random.default_rng(0)
    for name in "abcd":
        for split, count in (("train", 12), ("test", 2)):
            folder = copy.path / "data" / "flowers" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    assert copy.follow(recipe) == (1, 1)
    assert "flowers: 4 classes, 48 training and 8 test images" in copy.shell(commands(recipe))
    assert sum(copy.results["accuracy"]["count"]) == 8


@pytest.mark.slow
def test_a_measure_is_one_entry(copy):
    recipe = recipes()["A measure"]
    assert copy.follow(recipe) == (1, 1)
    assert "accuracy on the first task" in copy.shell(commands(recipe))
    assert "accuracy on the first task" in (copy.path / "report.html").read_text()
