"""Python programs forked from a process that has imported torch and the like, which takes longer than a tiny run.

Nothing of the project is imported before the fork, so a program can be one of a changed copy.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch",
        "torchvision",
        "timm.models.vision_transformer",
        "scipy.stats",
        "pydantic",
        "tyro",
        "easydict",
        "safetensors.torch",
    ]
)


def python(
    arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str], consoles: Path
) -> CompletedProcess[str]:
    """Do what `python ARGUMENTS` does in a folder, and wait for it.

    Args:
        arguments: A script, `-m` and a module, or `-c` and code, and then the program's own.
        folder: The working directory.
        environment: All its variables.
        consoles: Another folder, for what it prints.
    """
    files = [consoles / name for name in ("stdout", "stderr")]
    process = FORKS.Process(target=_become, args=(arguments, folder, dict(environment), files))
    process.start()
    process.join()
    assert process.exitcode is not None
    return CompletedProcess(list(arguments), process.exitcode, *(file.read_text(encoding="utf-8") for file in files))


def _become(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], files: list[Path]) -> None:
    own = Path(__file__).resolve().parents[1]
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [str(folder), *(place for place in sys.path if Path(place).resolve() not in (own, own / "tests"))]
    sys.orig_argv = [sys.executable, *arguments]
    try:
        match arguments:
            case ("-c", code, *given):
                sys.argv = ["-c", *given]
                exec(code, {"__name__": "__main__"})
            case ("-m", module, *given):
                sys.argv = [module, *given]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case (script, *given):
                sys.argv = [script, *given]
                runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
