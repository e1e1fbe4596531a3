"""The data of a training run: this process's batches, and the check that a resumed run has the same data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.fingerprint import data_fingerprint
from ..data.loader import ImageTensorDataset, ResumableBatchSampler, TrainingDataLoader, process_share
from ..data.open_dataset import load_rows, open_dataset
from ..data.streaming import StreamedBatches, streaming_loader
from ..data.transform import ImageTransform
from .checkpoints import check_equal
from .options import TrainingOptions
from .presets import TrainingPreset


def open_batches(
    options: TrainingOptions, preset: TrainingPreset, accelerator: Accelerator, state: dict[str, Any] | None = None
) -> tuple[DataLoader, dict[str, Any]]:
    """Opens the batches of this process's shares. Also returns a description of the data for the checkpoint.

    `state` is the checkpoint to resume from, if any. Raises ValueError if the data have changed since then.
    """
    source = options.dataset, options.split, options.image_column
    rows = open_dataset(*source, streaming=True) if options.streaming else load_rows(*source)
    path = Path(options.dataset).expanduser()
    data = {
        "dataset": str(path.resolve()) if path.exists() else options.dataset,
        "split": options.split,
        "image_column": options.image_column,
        "streaming": options.streaming,
        "shuffle_buffer": options.shuffle_buffer if options.streaming else None,
        "num_images": None if options.streaming else len(rows),
        "num_shards": rows.num_shards if options.streaming else None,
        "fingerprint": data_fingerprint(options.dataset, options.split, rows),
    }
    if state is not None:
        _check_same_data(state["data"], data, options.allow_changed_data, accelerator.print)
    transform = ImageTransform(
        preset.encoder["sample_size"],
        preset.encoder["in_channels"],
        horizontal_flip=preset.horizontal_flip,
        crop=preset.crop,
        seed=options.seed,
    )
    process = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    if not options.streaming:
        accelerator.print(f"training on {len(rows):,} images of {options.dataset}, split {options.split}")
        dataset = ImageTensorDataset(rows, transform, options.skip_bad_images)
        length = {"start": state["examples_seen"] if state is not None else 0, "stop": preset.training_examples}
        sampler = ResumableBatchSampler(len(rows), preset.batch_size, **length, seed=options.seed, **process)
        return TrainingDataLoader(dataset, options.num_workers, sampler=sampler), data

    accelerator.print(f"training on {rows.num_shards} shards of {options.dataset}, split {options.split}")
    positions = state["stream_positions"] if state is not None else [None] * accelerator.num_processes
    if len(positions) != accelerator.num_processes:
        raise ValueError(
            f"a streaming run must resume with {len(positions)} processes as before, got {accelerator.num_processes}"
        )
    share = process_share(preset.batch_size, **process)
    stream = StreamedBatches(
        rows,
        options.image_column,
        transform,
        batch_size=share.stop - share.start,
        buffer_size=options.shuffle_buffer,
        seed=options.seed,
        position=positions[accelerator.process_index],
        skip_bad_images=options.skip_bad_images,
        **process,
    )
    return streaming_loader(stream, options.num_workers), data


def _check_same_data(
    saved: dict[str, Any], current: dict[str, Any], allow_changed: bool, warn: Callable[[str], None]
) -> None:
    """Raises ValueError for changed data. The data set may have moved: another `dataset` is only a warning."""
    loose = ["dataset", *(["num_images", "num_shards", "fingerprint"] if allow_changed else [])]
    hint = "" if allow_changed else "; --allow-changed-data accepts changed data"
    check_equal(*({**data, **dict.fromkeys(loose)} for data in (saved, current)), hint)
    for name in loose:
        if saved[name] != current[name]:
            warn(f"WARNING: {name} was {saved[name]!r} in the checkpoint, this run has {current[name]!r}")
