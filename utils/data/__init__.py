"""The images of a run: data sets, tasks, decoding, augmentation, loading."""
