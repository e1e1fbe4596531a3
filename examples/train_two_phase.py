"""Train a diffusion autoencoder in two phases: t = 1 for the first quarter of the examples, then t uniform in [0, 1].

One process (a GPU, or the CPU where there is none):

    python examples/train_two_phase.py --preset cifar10-32 --dataset path/to/images --output_dir runs/mine

Several GPUs, or two CPU processes:

    accelerate launch --num_processes 4 examples/train_two_phase.py ...
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 examples/train_two_phase.py ...

The data set is a folder of images, a parquet file, a `datasets` folder or a Hub dataset. The preset holds the
experiment; a JSON file (--config), named flags and --set KEY=VALUE override it, the later of these the earlier. The run
folder receives configuration.json, metrics.jsonl, checkpoints, pictures and, at the end, the pipeline with averaged
(EMA) weights, which `DiffusionAutoencoderPipeline.from_pretrained` loads. SIGTERM and Ctrl-C save and end the run;
--resume_from_checkpoint latest continues it as if it had not been interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from PIL import Image
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffae_hub import __version__
from diffae_hub.data.errors import UnfitImage
from diffae_hub.data.loader import ImageTensorDataset, ResumableBatchSampler, process_share, training_loader
from diffae_hub.data.open_dataset import load_rows, open_dataset, where_from
from diffae_hub.data.sources import local_path, split_name
from diffae_hub.data.streaming import StreamedBatches, streaming_loader
from diffae_hub.data.transform import ImageTransform
from diffae_hub.files import new_folder, write_text
from diffae_hub.hub.model_card import figures_of_run, write_model_card
from diffae_hub.hub.push import ensure_repository, push_pipeline
from diffae_hub.training.checkpoints import (
    checkpoint_folders,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    set_aside_newer,
)
from diffae_hub.training.configuration import check_run, parse_arguments, resolve_experiment
from diffae_hub.training.faults import LossMonitor, StopSignal, TrainingError, check_finite_weights
from diffae_hub.training.presets import TrainingPreset
from diffae_hub.training.run_folder import (
    CONFIGURATION,
    append_metrics,
    check_same_data,
    check_same_experiment,
    describe_data,
    is_validated,
    own_run_folder,
    read_metrics,
    rewind_metrics,
)
from diffae_hub.training.trainer import TwoPhaseTrainer
from diffae_hub.training.validation import picture_grid, validate


def build_loader(
    arguments: argparse.Namespace,
    preset: TrainingPreset,
    accelerator: Accelerator,
    state: dict[str, Any] | None,
) -> tuple[DataLoader, dict[str, Any]]:
    """Batches of this process's shares, from a checkpoint's state on, and what a resumed run must find again."""
    transform = ImageTransform(
        preset.encoder["sample_size"],
        preset.encoder["in_channels"],
        horizontal_flip=preset.horizontal_flip,
        crop=preset.crop,
        seed=arguments.seed,
    )
    process = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    source = arguments.dataset, arguments.split, arguments.image_column
    rows = open_dataset(*source, streaming=True) if arguments.streaming else load_rows(*source)
    data = describe_data(*source, rows, arguments.shuffle_buffer if arguments.streaming else None)
    examples_seen = state["examples_seen"] if state else 0
    if state is not None:
        check_same_data(state["data"], data, accelerator.print)
    if not arguments.streaming:
        accelerator.print(f"training on {where_from(rows, *source[:2])}")
        dataset = ImageTensorDataset(rows, transform, arguments.skip_bad_images)
        sampler = ResumableBatchSampler(
            len(dataset),
            preset.batch_size,
            start=examples_seen,
            stop=preset.training_examples,
            seed=arguments.seed,
            **process,
        )
        return training_loader(dataset, sampler, arguments.num_workers), data
    accelerator.print(f"training on a stream from {source[0]}, split {source[1]}: {rows.num_shards} files or shards")
    positions = state["stream_positions"] or [] if examples_seen else [None] * accelerator.num_processes
    if len(positions) != accelerator.num_processes:
        raise ValueError(
            f"a streaming run must resume with as many processes as it had, {len(positions)}, "
            f"got {accelerator.num_processes}"
        )
    share = process_share(preset.batch_size, **process)
    stream = StreamedBatches(
        rows,
        arguments.image_column,
        transform,
        batch_size=share.stop - share.start,
        buffer_size=arguments.shuffle_buffer,
        seed=arguments.seed,
        position=positions[accelerator.process_index],
        skip_bad_images=arguments.skip_bad_images,
        **process,
    )
    return streaming_loader(stream, arguments.num_workers), data


def load_validation_images(arguments: argparse.Namespace, preset: TrainingPreset) -> torch.Tensor:
    """The first images of the validation data, (B, C, H, W), in [-1, 1]."""
    source = arguments.validation_dataset, arguments.validation_split, arguments.image_column
    if local_path(source[0]).exists() or source[1] != split_name(source[1]):
        rows = load_rows(*source)
    else:  # of a Hub data set's split no more than is used
        stream = islice(open_dataset(*source, streaming=True), arguments.validation_images)
        images = [row[arguments.image_column] or {} for row in stream]
        rows = [{"path": f"row {index}", "bytes": image.get("bytes")} for index, image in enumerate(images)]
    transform = ImageTransform(
        preset.encoder["sample_size"],
        preset.encoder["in_channels"],
        crop="center" if preset.crop == "random" else preset.crop,
    )
    try:
        images = [transform(rows[index]) for index in range(min(arguments.validation_images, len(rows)))]
    except UnfitImage:
        raise
    except ValueError as error:
        raise ValueError(f"validation_dataset must hold readable images: {error}") from error
    print(f"validation on the first {len(images):,} of {where_from(rows, *source[:2])}", flush=True)
    return torch.stack(images)


def train(
    arguments: argparse.Namespace, preset: TrainingPreset, accelerator: Accelerator, stop_signal: StopSignal
) -> None:
    run_folder: Path = arguments.output_dir
    device, is_main = accelerator.device, accelerator.is_main_process
    accelerator.wait_for_everyone()  # until the folder is this run's
    if checkpoint_folders(run_folder) and not arguments.resume_from_checkpoint:
        raise ValueError(
            f"--output_dir {run_folder} holds checkpoints: continue with --resume_from_checkpoint latest, "
            "or name another folder"
        )

    # The resolved configuration: printed now, kept with the run once nothing speaks against it.
    configuration = {
        "preset": arguments.preset,
        "experiment": preset.to_dict(),
        "run": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items() if v is not None},
        "num_processes": accelerator.num_processes,
        "diffae_hub": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "accelerate", "datasets")},
    }
    accelerator.print(json.dumps(configuration, indent=2))
    trainer = TwoPhaseTrainer(
        preset,
        accelerator,
        seed=arguments.seed,
        channels_last=arguments.channels_last,
        gradient_checkpointing=arguments.gradient_checkpointing,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        compiled=arguments.compile,
    )

    # Resume.
    state = None
    if arguments.resume_from_checkpoint == "latest":
        folder, state = load_latest_checkpoint(run_folder, accelerator.print)
        if state is None:
            accelerator.print(f"no checkpoint in {run_folder} yet: starting anew")
    elif arguments.resume_from_checkpoint:
        folder = Path(arguments.resume_from_checkpoint)
        state = load_checkpoint(folder)
    if state is not None:
        check_same_experiment(state["experiment"], {**preset.to_dict(), "seed": arguments.seed})
        trainer.load_state_dict(state, state["examples_seen"])
        accelerator.print(f"resumed from {folder} at {trainer.examples_seen} examples")

    loader, data = build_loader(arguments, preset, accelerator, state)
    positions = state["stream_positions"] if state else None
    monitor = LossMonitor(accelerator, stop_signal)
    if state is not None:
        monitor.load_state_dict(state["losses"])
    del state  # as large as the networks, optimizer and averages together
    validation_images = load_validation_images(arguments, preset) if is_main and arguments.validation_dataset else None
    hub_model_id = None
    if is_main and arguments.push_to_hub:  # not after days of training is the time to learn that there is no token
        hub_model_id = ensure_repository(arguments.hub_model_id or run_folder.resolve().name, arguments.hub_private)
    if is_main:
        configuration["data"] = data
        write_text(run_folder / CONFIGURATION, json.dumps(configuration, indent=2))
        for folder in set_aside_newer(run_folder, trainer.examples_seen):
            print(f"a checkpoint beyond {trainer.examples_seen} examples is set aside: {folder}", flush=True)
        rewind_metrics(run_folder, trainer.examples_seen)
    if arguments.report_to != "none":
        flat = {
            key: value if isinstance(value, (int, float)) else str(value) for key, value in preset.to_dict().items()
        }
        # TensorBoard leaves out what was recorded after the checkpoint, which is recorded again.
        after = {"tensorboard": {"purge_step": trainer.examples_seen + 1}}
        accelerator.init_trackers("two_phase", config=flat, init_kwargs=after)

    def log(record: dict[str, float]) -> None:
        append_metrics(run_folder, {"examples": trainer.examples_seen, "phase": trainer.phase, **record})
        accelerator.log(record, step=trainer.examples_seen)

    def due(every: int) -> bool:
        before = trainer.examples_seen - preset.batch_size
        return trainer.finished or before // every != trainer.examples_seen // every

    def run_validation() -> None:
        with trainer.averaged_weights():
            images, steps = validation_images.to(device), arguments.validation_steps
            figures, pictures = validate(trainer.pipeline(), images, trainer.phase, steps, arguments.seed)
        grid = picture_grid(validation_images / 2 + 0.5, pictures)
        pixels = (grid * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        (run_folder / "validation").mkdir(exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(run_folder / "validation" / f"{trainer.examples_seen:010d}.png")
        if arguments.report_to != "none":
            layout = {"dataformats": "NHWC"} if arguments.report_to == "tensorboard" else {}
            tracker = accelerator.get_tracker(arguments.report_to)
            tracker.log_images({"reconstructions": pixels[None]}, step=trainer.examples_seen, **layout)
        log(figures)
        progress.write(f"{trainer.examples_seen} examples: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    def checkpoint() -> None:
        nonlocal positions
        if arguments.streaming and batch is not None:
            positions = gather_object([batch.position])
        if not is_main:
            return
        check_finite_weights(trainer.parameters, trainer.examples_seen)
        save_checkpoint(
            run_folder,
            trainer.examples_seen,
            {
                **trainer.state_dict(),
                "losses": monitor.state_dict(),
                "stream_positions": positions,
                "experiment": {**preset.to_dict(), "seed": arguments.seed},
                "data": data,
            },
            arguments.keep_checkpoints,
        )

    # Train. The order of the data, too, depends on the seed and on the examples seen, on nothing else.
    batch, skipped = None, set()
    progress = tqdm(
        total=preset.training_examples, initial=trainer.examples_seen, unit="img", mininterval=5, disable=not is_main
    )
    try:
        missed = trainer.examples_seen > 0 and not is_validated(run_folder, trainer.examples_seen)  # killed in between
        if missed and validation_images is not None and due(arguments.validation_every):
            run_validation()
        interval_start, interval_examples = time.monotonic(), trainer.examples_seen
        saved_at = trainer.examples_seen if checkpoint_folders(run_folder) else None
        batches = iter(loader)
        while not trainer.finished and not monitor.stopping:
            batch = next(batches)
            for line in sorted(set(batch.unreadable) - skipped):
                skipped.add(line)
                print(f"skipped an unreadable image ({len(skipped)} so far): {line}", file=sys.stderr, flush=True)
            loss = trainer.step(batch.images)
            monitor.add(trainer.examples_seen // preset.batch_size, trainer.examples_seen, loss)
            progress.update(preset.batch_size)

            if due(arguments.log_every):
                monitor.check()
                rate = (trainer.examples_seen - interval_examples) / (time.monotonic() - interval_start)
                mean_loss = monitor.mean()
                progress.set_postfix(phase=trainer.phase, loss=f"{mean_loss:.4f}")
                if is_main:
                    log({"loss": mean_loss, "learning_rate": trainer.learning_rate, "examples_per_second": rate})
                interval_start, interval_examples = time.monotonic(), trainer.examples_seen
            pause = time.monotonic()
            if due(arguments.checkpoint_every):
                monitor.check()
                checkpoint()
                saved_at = trainer.examples_seen
            # After the checkpoint: what goes wrong here, or a machine that is taken away meanwhile, costs no training.
            if validation_images is not None and due(arguments.validation_every):
                run_validation()
            interval_start += time.monotonic() - pause
    finally:
        progress.close()  # so that what is printed next has a line of its own
    monitor.check()

    if saved_at != trainer.examples_seen:
        checkpoint()
    skipped = set(gather_object(sorted(skipped)))  # by all processes, who thereby wait for the checkpoint
    if skipped:
        accelerator.print(f"{len(skipped)} unreadable images were skipped")
    if not trainer.finished:
        accelerator.print(
            f"stopped by {stop_signal.name or 'a signal'} at {trainer.examples_seen} examples; "
            "--resume_from_checkpoint latest continues"
        )
    elif is_main:
        stop_signal.restore()
        figures = figures_of_run(
            hub_model_id or run_folder.resolve().name,
            arguments.dataset,
            preset.to_dict(),
            {name: sum(p.numel() for p in part.parameters()) for name, part in trainer.autoencoder.named_children()},
            read_metrics(run_folder),
            0 if validation_images is None else len(validation_images),
            arguments.validation_steps,
            arguments.hub_license,
        )
        finished_pipeline = run_folder / "pipeline"
        with trainer.averaged_weights(), new_folder(finished_pipeline) as partial:
            trainer.pipeline().save_pretrained(partial)
            write_model_card(partial, figures)
        accelerator.print(f"pipeline saved to {finished_pipeline}")
        if hub_model_id:
            try:
                push_pipeline(finished_pipeline, hub_model_id, private=arguments.hub_private)
            except ValueError as error:
                again = f"diffae-hub push {finished_pipeline} {hub_model_id}"
                raise TrainingError(f"the pipeline was not uploaded; `{again}` does it: {error}") from error
            accelerator.print(f"pushed to {hub_model_id}")
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for a command line that cannot be run, 1 for a run that broke off."""
    try:
        arguments = parse_arguments(argv, __doc__)
        preset = resolve_experiment(arguments)
        with StopSignal() as stop_signal:
            accelerator = Accelerator(
                mixed_precision=arguments.mixed_precision,
                # The other processes wait while the first one validates.
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
                log_with=None if arguments.report_to == "none" else arguments.report_to,
                project_dir=arguments.output_dir / "logs",
            )
            check_run(arguments, preset, accelerator.num_processes, accelerator.device.type)
            with own_run_folder(arguments.output_dir) if accelerator.is_main_process else nullcontext():
                train(arguments, preset, accelerator, stop_signal)
        return 0
    except ValueError as error:
        code, message, everywhere = 2, str(error), isinstance(error, UnfitImage)
    except (TrainingError, OSError, SafetensorError) as error:
        code, message, everywhere = 1, str(error), True
        checkpoints = checkpoint_folders(arguments.output_dir)
        message += f"; the last good checkpoint is {checkpoints[-1] if checkpoints else 'none'}"
    except RuntimeError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1" or "by peer" not in str(error):
            raise
        code, message, everywhere = 1, "another process ended, and this one with it", True
    # All processes refuse a command line; each machine has its own data.
    if everywhere or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"train_two_phase.py: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
