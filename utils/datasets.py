"""The data sets: one entry each. `utils.data.sources` reads them; the key `dataset` takes its choices from here.

A data set in the layout `{train,test}/<class>/<image>` needs an entry and nothing else.
"""

from dataclasses import dataclass
from typing import Literal

REVISITING = "the archive of that name under Dataset at https://github.com/zhoudw-zdw/RevisitingCIL, to be unpacked"


@dataclass(frozen=True)
class Source:
    """Where a data set lies, how it is read, and where it comes from.

    Attributes:
        reader: Which function of `utils.data.sources` reads it.
        folder: Its path under `data_root`; empty: `data_root` itself, which then says which images are used.
        layout: What is to lie under `data_root`.
        origin: Where to get it.
        nb_classes: Number of its classes; None: any.
    """

    reader: Literal["folders", "cifar100", "npz"]
    folder: str
    layout: str
    origin: str
    nb_classes: int | None = None


def benchmark(folder: str, nb_classes: int) -> Source:
    """A published benchmark of class folders."""
    layout = f"{folder}/{{train,test}}/<class>/<image>, {nb_classes} classes"
    return Source("folders", folder, layout, REVISITING, nb_classes)


DATASETS = {
    "cifar224": Source(
        "cifar100",
        "cifar-100-python",
        "cifar-100-python/{train,test,meta}",
        "python -m utils.data cifar224 --data_root <data_root>, which downloads "
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        nb_classes=100,
    ),
    "imagenetr": benchmark("imagenet-r", 200),
    "imageneta": benchmark("imagenet-a", 200),
    "cub": benchmark("cub", 200),
    "objectnet": benchmark("objectnet", 200),
    "omnibenchmark": benchmark("omnibenchmark", 300),
    "vtab": benchmark("vtab", 50),
    "imagefolder": Source("folders", "", "{train,test}/<class>/<image>", "your own images"),
    "npz": Source(
        "npz",
        "",
        "NAME.npz, or data_root is the file itself; in it uint8 images x_train, x_test of shape (N, H, W) or "
        "(N, H, W, 3), whole numbers y_train, y_test of shape (N,), and if you like class_names",
        "your own arrays, written by numpy.savez",
    ),
}
