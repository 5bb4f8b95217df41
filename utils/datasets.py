"""The data sets, one entry for each. The key `dataset` takes its choices from here, `utils.data.sources` reads them.

A data set in the layout `{train,test}/<class>/<image>` needs only an entry; `test` may be called `val`.
"""

from dataclasses import dataclass
from typing import Literal

REVISITING = "the archive of that name under Dataset at https://github.com/zhoudw-zdw/RevisitingCIL, to be unpacked"


@dataclass(frozen=True)
class Source:
    """Location, format and origin of a data set.

    Attributes:
        reader: The reader in `utils.data.sources`.
        folder: Folder under `data_root`; empty: `data_root` itself, which then determines the images.
        layout: Expected files under `data_root`.
        origin: Where to get the data set.
        nb_classes: Number of classes; None: any.
    """

    reader: Literal["folders", "cifar100", "npz"]
    folder: str
    layout: str
    origin: str
    nb_classes: int | None = None


def benchmark(folder: str, nb_classes: int) -> Source:
    """Return the entry of a published benchmark with one folder for each class."""
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
        "(N, H, W, 3), integers y_train, y_test of shape (N,), and optionally class_names",
        "your own arrays, written by numpy.savez",
    ),
}
