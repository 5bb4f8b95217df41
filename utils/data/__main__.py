"""`python -m utils.data NAME --data_root DIR` checks that a data set is complete; it downloads cifar224 if needed."""

if __name__ == "__main__":
    from utils.console import start

    start()

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args
from urllib.error import URLError

from torchvision.datasets import CIFAR100

from utils.console import command
from utils.data.sources import OnBadImage, load_dataset
from utils.datasets import DATASETS
from utils.errors import DataError
from utils.files import path_argument

PATIENCE = 30.0  # seconds to wait for a server


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Check a data set and print its size. cifar224 is downloaded first if it is missing."""
    parser = argparse.ArgumentParser(prog="python -m utils.data", description=main.__doc__)
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument("--data_root", type=path_argument, default=Path("data"))
    meaning = "error: check only the header of every image; skip: decode every image and list those that cannot be read"
    parser.add_argument("--on_bad_image", choices=get_args(OnBadImage), default="error", help=meaning)
    given = parser.parse_args(arguments)
    try:
        if given.name == "cifar224":
            fetch_cifar(given.data_root)
        data = load_dataset(given.name, given.data_root, given.on_bad_image)
    except (DataError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.name}: {data.summary}")
    return 0


def fetch_cifar(folder: Path) -> None:
    """Download CIFAR-100 into a folder and unpack it, unless it is there.

    Raises:
        DataError: There is no connection, or what arrived is something else.
    """
    socket.setdefaulttimeout(PATIENCE)
    try:
        CIFAR100(folder, download=True)
    except (URLError, ConnectionError, TimeoutError, RuntimeError) as error:
        raise DataError(
            f"{CIFAR100.url} could not be fetched ({error}); download it by other means, put {CIFAR100.filename} into "
            f"{folder.absolute()}, and give the same command again, which unpacks it"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
