"""Data sets: folders of images, parquet, Hub data sets, streams."""
