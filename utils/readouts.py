"""The names of readouts and of their sides. This module imports no torch.

A side says which adapters act when a readout's features are computed: "" all of them, "adapters_off" none, and the name
of a branch that branch alone. A label is a readout's name, and after a dot its side if that is not "".
"""

NCM, LDA, RANPAC = "ncm", "lda", "ranpac"
READOUTS = (NCM, LDA, RANPAC)  # the choices of the key `readouts`; `models.readouts` has a class for each
OFF = "adapters_off"
PREFIX = "readout."  # before the tensors of readouts in a checkpoint, and their predictions in a file
ALIGNMENT = "alignment."  # before the Gaussians of classifier_alignment in a checkpoint
STATISTICS = (PREFIX, ALIGNMENT)


def label_of(name: str, side: str) -> str:
    """Return the label of a readout on a side."""
    return f"{name}.{side}" if side else name


def parts_of(label: str) -> tuple[str, str]:
    """Return the name and the side of a label."""
    name, _, side = label.partition(".")
    return name, side
