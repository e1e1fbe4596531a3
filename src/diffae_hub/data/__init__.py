"""Data sets: folders of images, parquet, Hub data sets, streams."""


class TrainingError(RuntimeError):
    """The training cannot go on, because of its data or otherwise: one line for the user, without a traceback."""
