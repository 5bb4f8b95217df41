"""`python -m utils.data NAME --data_root DIR` downloads cifar224, and says of every data set whether it is complete."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import CIFAR100

from utils.data.sources import ON_BAD_IMAGE, load_dataset
from utils.datasets import DATASETS
from utils.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Download a data set if that can be done, check it, and say how large it is; the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.data", description=main.__doc__)
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    meaning = "skip: decode every image and name those that cannot be read; error: look at their first bytes"
    parser.add_argument("--on_bad_image", choices=ON_BAD_IMAGE, default="error", help=meaning)
    given = parser.parse_args(arguments)
    try:
        if given.name == "cifar224":
            CIFAR100(given.data_root, download=True)
        data = load_dataset(given.name, given.data_root, given.on_bad_image)
    except (DataError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.name}: {data.summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
