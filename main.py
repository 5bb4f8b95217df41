"""Command line: train the runs of one configuration, or evaluate, apply or export a checkpoint.

    python main.py --config exps/quickstart.json [--any_key value ...] [--seed 1 2 3]
    python main.py --plugin my_adapter.py --config exps/quickstart.json --ffn_adapter_type my_adapter
    python main.py --resume logs/RUN
    python main.py --eval --checkpt_path logs/RUN/checkpoints/TASK.safetensors [--config exps/quickstart.json]
    python main.py --predict IMAGE_OR_FOLDER ... --checkpt_path logs/RUN
    python main.py --export FILE.safetensors --checkpt_path logs/RUN

Exit codes: 0 done, 1 a file could not be written or read, or memory ran out, 2 an error that the user can correct,
3 the audit of the run failed, 4 training diverged, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

if __name__ == "__main__":
    import os
    import sys

    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # `python -P` leaves it out
    from utils.console import start

    start()

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.choices import load_plugin
from utils.config.flags import parse, plugins
from utils.config.load import load, resolve
from utils.config.schema import USES, Config
from utils.console import command
from utils.data.listing import find_images
from utils.errors import AFTER_DIVERGENCE, AuditError, ConfigError, DivergenceError, StoppedError
from utils.stopping import stop_with_sweep
from utils.text import shown

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)  # torch's words
ASKED_FOR = re.compile(r"allocate ([\d.]+ \w+)")
AFTER_MEMORY_RAN_OUT = (
    "the last saved state is kept. Continue with --auto_resume and --grad_checkpointing, or a lower num_workers, "
    "image_cache_gib, eval_cache_gib or views_gib; or start a new run with a lower batch_size, detect_batch_size or "
    "eval_batch_size, or with precision bf16"
)
AFTER_A_FAILED_FILE = "the run's files are kept; correct this, then continue with the same command and --auto_resume"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: that of the process) and return its exit code."""
    try:
        argv = sys.argv[1:] if argv is None else argv
        for plugin in plugins(argv):
            load_plugin(plugin)
        path, flags = parse(argv)
        config = read_config(path, flags)
        run(config, path.stem if path else config.dataset)
    except AuditError as error:
        print(error, file=sys.stderr)
        return 3
    except DivergenceError as error:
        print(f"{error}; {AFTER_DIVERGENCE}", file=sys.stderr)
        return 4
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
            raise
        size = ASKED_FOR.search(str(error))
        print(
            f"memory ran out{f' when {size[1]} were asked for' if size else ''}; {AFTER_MEMORY_RAN_OUT}",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"{error}; {AFTER_A_FAILED_FILE}", file=sys.stderr)
        return 1
    return 0


def read_config(path: Path | None, flags: Mapping[str, object]) -> Config:
    """Return the configuration: flags over the file, or else over the run to resume or the checkpoint to use.

    Raises:
        UserError: File, run directory, checkpoint or flags are wrong.
    """
    begun = flags.get("resume")
    if path is None and isinstance(begun, str):
        from utils.runs.directory import begun_config

        return resolve(begun_config(Path(begun)), begun, flags)
    checkpoint = flags.get("checkpt_path")
    if path is None and (uses := [use for use in USES if flags.get(use) not in (None, False)]):
        if not isinstance(checkpoint, str):
            raise ConfigError(f"{uses[0]} needs a checkpt_path: a checkpoint or a run directory")
        from utils.runs import checkpoint_meta
        from utils.runs.directory import relocated

        file = checkpoint_meta.checkpoint_file(Path(checkpoint))
        on_record = checkpoint_meta.read_config(file)
        return resolve(relocated(on_record, file.absolute().parent.parent), str(file), flags)
    if path is None and checkpoint is not None and "dataset" not in flags:
        raise ConfigError(f"checkpt_path = {shown(checkpoint)}: say what to do with it: --{', --'.join(USES)}")
    return load(path, flags)


def run(config: Config, name: str) -> None:
    """Do what is asked. torch is imported only here, so that `--help` and configuration errors are quick."""
    stop_with_sweep()
    if config.eval:
        from eval import evaluate

        evaluate(config)
    elif config.predict is not None:
        images = find_images(config.predict)
        from eval import predict

        predict(config, images)
    elif config.export is not None:
        from eval import export

        export(config)
    else:
        from trainer import train

        train(config, name)


if __name__ == "__main__":
    sys.exit(main())
