"""The images of a run: data sets, tasks, decoding, augmentation, loading."""

from utils.data.sources import load_dataset as load_dataset
