"""The command line as a user meets it: a process, its exit code and what it prints."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import main
from utils.config.schema import Config, schemas
from utils.errors import ConfigError
from utils.runs import checkpoint_meta

ROOT = Path(__file__).parents[1]
TORCH_LOADED = 99
PROGRAM = f"""
import sys, main
try:
    code = main.main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
sys.exit({TORCH_LOADED} if sys.modules.keys() & {{"torch", "timm"}} else code)
"""


def cli(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run main.py in a process of its own; the exit code is another one if that loaded torch or timm."""
    command = [sys.executable, "-c", PROGRAM, *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_answers_within_two_seconds_of_processor_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "main.py", "--help", "all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stderr == ""
    assert [key for key in Config.model_fields if f"--{key} " not in done.stdout] == []
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_help_needs_no_torch():
    assert cli("--help").returncode == 0
    assert cli("--help", "rd_dim").returncode == 0
    assert cli("--help", "rd_dmi").stderr == "--help rd_dmi: unknown key; did you mean rd_dim?\n"


def test_problems_of_file_and_flags_are_listed_together(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"dataset": "cub", "nested_lora_ranks": 8, "batch_size": 0}')
    done = cli("--config", str(path), "--optimzer", "sgd", "--eval", "--func_epoch", "none")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.split(" = ")[0] for line in lines] == [
        "func_epoch",
        "batch_size",
        "nested_lora_ranks",
        "optimzer",
        "eval",
    ]
    assert lines[2].endswith(f"({path}): unknown key; did you mean nested_lora_rank?")
    assert lines[3].endswith("(flag --optimzer): unknown key; did you mean optimizer?")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "dataset: missing"),
        (["--config", "exps/sema_cifr.json"], "did you mean sema_cifar.json"),
        (["--config"], "--config"),
        (["--config", "exps/sweeps/interval.json"], "run it: python -m tools.sweep exps/sweeps/interval.json"),
        (["--config", "exps/quickstart.json", "--dry-run", "--eval", "--checkpt_path", "x"], "give only one of eval, "),
        (["quickstart"], "belongs to no flag"),
        (["--dataset", "cub", "--device", "0", "1"], "one device for now"),
        (["--dataset", "cub", "--eval"], "needs a checkpt_path"),
    ],
)
def test_what_the_user_can_put_right_ends_with_code_2_and_no_traceback(argv, message):
    done = cli(*argv)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluation_takes_the_configuration_of_the_checkpoint_and_flags_beat_it(monkeypatch):
    monkeypatch.setattr(
        checkpoint_meta, "read_config", {Path("a.safetensors"): {"dataset": "vtab", "ffn_num": 3, "rd_dim": 4}}.get
    )
    flags = {"eval": True, "checkpt_path": "a.safetensors", "rd_dim": 5}
    config = main.read_config(None, flags)
    assert (config.dataset, config.ffn_num, config.rd_dim, config.eval) == ("vtab", 3, 5, True)


def test_evaluation_with_a_file_takes_the_configuration_of_the_file():
    flags = {"eval": True, "checkpt_path": "no.safetensors"}
    assert main.read_config(ROOT / "exps" / "sema_ina.json", flags).dataset == "imageneta"


def test_a_checkpoint_s_faults_are_named_by_its_path(monkeypatch):
    monkeypatch.setattr(checkpoint_meta, "read_config", lambda path: {"dataset": "vtab", "ffn_nun": 3})
    with pytest.raises(ConfigError, match=r"ffn_nun = 3 \(a\.pth\): unknown key; did you mean ffn_num\?"):
        main.read_config(None, {"eval": True, "checkpt_path": "a.pth"})


def test_an_interrupt_ends_with_code_130(monkeypatch, capsys):
    def interrupted(config, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run", interrupted)
    assert main.main(["--dataset", "cub"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 96 bytes."),
            " when 96 bytes were asked for",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."),
            " when 2.50 GiB were asked for",
        ),
        (MemoryError(), ""),
    ],
)
def test_when_memory_runs_out_the_keys_that_help_are_named(monkeypatch, capsys, error, size):
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(main, "run", run)
    assert main.main(["--dataset", "npz"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"memory ran out{size}; the last saved state is kept. Continue with --auto_resume and ")
    named = set(re.findall(r"[a-z]+(?:_[a-z]+)+", said))
    assert named <= Config.model_fields.keys()
    assert {key for key in named if schemas()[key]["changes_results"]} == {
        "batch_size",
        "detect_batch_size",
        "eval_batch_size",
    }


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def run(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(main, "run", run)
    with pytest.raises(RuntimeError, match="mat1"):
        main.main(["--dataset", "npz"])


@pytest.mark.parametrize(
    ("argv", "name"),
    [(["--config", "exps/sema_cifar.json"], "sema_cifar"), (["--dataset", "cub"], "cub")],
)
def test_a_run_is_named_after_its_file_or_else_its_data_set(monkeypatch, argv, name):
    started = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(main, "run", lambda config, name: started.append((config, name)))
    assert main.main([*argv, "--ffn_num", "3"]) == 0
    ((config, given),) = started
    assert (config.ffn_num, given) == (3, name)
