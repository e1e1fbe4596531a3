"""Train a diffusion autoencoder in two phases: t = 1 for the first quarter of the examples, then t uniform in [0, 1].

    accelerate launch examples/train_two_phase.py --preset cifar10-32 --dataset path/to/images --output_dir runs/mine

The data set is a folder of images, a parquet file or a Hub dataset. Every value of the preset can be overridden. The run
folder receives checkpoints, `metrics.jsonl` and, at the end, the pipeline with averaged (EMA) weights, which
`DiffusionAutoencoderPipeline.from_pretrained` loads. `--resume_from_checkpoint latest` continues an interrupted run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffae_hub import DiffusionAutoencoderPipeline
from diffae_hub.training.checkpoints import checkpoint_folders, load_checkpoint, save_checkpoint
from diffae_hub.training.data import (
    ImageTensorDataset,
    ResumableBatchSampler,
    load_image_dataset,
    process_share,
    training_loader,
)
from diffae_hub.training.objective import (
    DiffusionAutoencoder,
    denoising_loss,
    learning_rate_at,
    phase_at,
    sample_timesteps,
)
from diffae_hub.training.presets import PRESETS, TrainingPreset, preset_named


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help=f"one of {', '.join(sorted(PRESETS))}")
    parser.add_argument("--dataset", required=True, help="folder of images, parquet file or Hub dataset")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--validation_dataset", default=None, help="as --dataset; its first images are reconstructed")
    parser.add_argument("--validation_images", type=int, default=64)
    parser.add_argument("--validation_every", type=int, default=100_000, help="examples between validations")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--training_examples", type=int)
    parser.add_argument("--phase1_fraction", type=float)
    parser.add_argument("--batch_size", type=int, help="global, over all processes")
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--warmup_examples", type=int)
    parser.add_argument("--ema_decay", type=float)
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint_every", type=int, default=100_000, help="examples between checkpoints")
    parser.add_argument("--keep_checkpoints", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="'latest' or the path of a checkpoint")
    return parser.parse_args(argv)


def resolve_preset(arguments: argparse.Namespace) -> TrainingPreset:
    """The named preset with the values given on the command line."""
    names = ("training_examples", "phase1_fraction", "batch_size", "learning_rate", "warmup_examples", "ema_decay")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return dataclasses.replace(preset_named(arguments.preset), **given)


def step_generator(seed: int, examples_seen: int, device: torch.device) -> torch.Generator:
    """Noise and timesteps depend on the seed and the position only: a resumed run draws what it would have drawn."""
    return torch.Generator(device).manual_seed((seed << 40) + examples_seen)


@torch.no_grad()
def validate(pipeline: DiffusionAutoencoderPipeline, images: torch.Tensor, phase: int, seed: int) -> dict[str, float]:
    """Mean PSNR of the reconstructions, in dB on images in [0, 1]. A phase-1 model only knows t = 1: one step."""
    pipeline.set_progress_bar_config(disable=True)

    def psnr(reconstructions: torch.Tensor) -> float:
        error = ((reconstructions.clamp(-1, 1) - images) / 2).square().mean(dim=(1, 2, 3))
        return float((-10 * error.log10()).mean())

    def reconstruct(mode: str, steps: int) -> torch.Tensor:
        generator = torch.Generator(images.device).manual_seed(seed)
        return pipeline(images, mode=mode, num_inference_steps=steps, generator=generator, output_type="latent").images

    if phase == 1:
        return {"psnr_one_step": psnr(reconstruct("stochastic", 1))}
    return {
        "psnr_stochastic": psnr(reconstruct("stochastic", 50)),
        "psnr_inversion": psnr(reconstruct("inversion", 50)),
    }


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    preset = resolve_preset(arguments)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
    device = accelerator.device
    run_folder = arguments.output_dir
    if accelerator.is_main_process:
        run_folder.mkdir(parents=True, exist_ok=True)
        (run_folder / "configuration.json").write_text(json.dumps(preset.to_dict(), indent=2))

    # Models, averaged weights, optimizer.
    torch.manual_seed(arguments.seed)
    scheduler = preset.build_scheduler()
    model = DiffusionAutoencoder(preset.build_encoder(), preset.build_decoder()).to(device)
    if arguments.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, betas=(0.9, 0.999))
    ema = EMAModel(model.parameters(), decay=preset.ema_decay)
    parameters = list(model.parameters())
    unwrapped = model
    model, optimizer = accelerator.prepare(model, optimizer)

    # Resume.
    examples_seen = 0
    if arguments.resume_from_checkpoint:
        latest = arguments.resume_from_checkpoint == "latest"
        folders = checkpoint_folders(run_folder)[-1:] if latest else [Path(arguments.resume_from_checkpoint)]
        for folder in folders:
            state = load_checkpoint(folder)
            unwrapped.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ema.load_state_dict(state["ema"])
            examples_seen = state["examples_seen"]
            accelerator.print(f"resumed from {folder} at {examples_seen} examples")

    # Data.
    resolution, channels = preset.encoder["sample_size"], unwrapped.encoder.config.in_channels
    images_dataset = ImageTensorDataset(
        load_image_dataset(arguments.dataset, arguments.split, arguments.image_column),
        resolution,
        channels,
        horizontal_flip=preset.horizontal_flip,
        crop=preset.crop,
        seed=arguments.seed,
    )
    sampler = ResumableBatchSampler(
        len(images_dataset),
        preset.batch_size,
        start=examples_seen,
        stop=preset.training_examples,
        seed=arguments.seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    loader = training_loader(images_dataset, sampler, arguments.num_workers)
    validation = None
    if arguments.validation_dataset:
        dataset = load_image_dataset(arguments.validation_dataset, "test", arguments.image_column)
        held_out = ImageTensorDataset(dataset, resolution, channels, crop=preset.crop)
        validation = torch.stack([held_out[i] for i in range(min(arguments.validation_images, len(held_out)))])
        validation = validation.to(device)

    def averaged_pipeline() -> DiffusionAutoencoderPipeline:
        """A pipeline around the networks; call inside `ema.store` / `ema.restore`."""
        return DiffusionAutoencoderPipeline(
            encoder=unwrapped.encoder, decoder=unwrapped.decoder, scheduler=preset.build_scheduler()
        )

    def log(record: dict[str, float]) -> None:
        with (run_folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    # Train.
    progress = tqdm(
        total=preset.training_examples,
        initial=examples_seen,
        unit="img",
        disable=not accelerator.is_main_process,
        mininterval=5,
    )
    started, started_at, running_loss, running_count = time.monotonic(), examples_seen, 0.0, 0
    for images in loader:
        batch_size = min(preset.batch_size, preset.training_examples - examples_seen)
        phase = phase_at(examples_seen, preset.training_examples, preset.phase1_fraction)

        # Every process draws the noise and timesteps of the global batch and takes its share.
        share = process_share(batch_size, accelerator.process_index, accelerator.num_processes)
        generator = step_generator(arguments.seed, examples_seen, device)
        timesteps = sample_timesteps(batch_size, phase, scheduler, generator, device)[share]
        noise = torch.randn((batch_size, *images.shape[1:]), generator=generator, device=device)[share]
        torch.manual_seed(((arguments.seed << 40) + examples_seen) * 1009 + accelerator.process_index)  # dropout
        images = images.to(device, non_blocking=True)
        if arguments.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)

        model.train()
        with accelerator.autocast():
            losses = denoising_loss(model, scheduler, images, noise, timesteps)
        # DDP averages over processes; the shares' sums over the global batch size are what must be added.
        loss = losses.sum() * accelerator.num_processes / batch_size
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(examples_seen + batch_size, preset.learning_rate, preset.warmup_examples)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)

        before, examples_seen = examples_seen, examples_seen + batch_size
        progress.update(batch_size)
        running_loss, running_count = running_loss + float(loss.detach()), running_count + 1
        finished = examples_seen >= preset.training_examples

        def crossed(every: int, before: int = before) -> bool:
            return before // every != examples_seen // every

        if crossed(5_000) or finished:
            mean_loss = float(accelerator.reduce(torch.tensor(running_loss / running_count, device=device), "mean"))
            if not math.isfinite(mean_loss):
                raise RuntimeError(f"the loss is {mean_loss} after {examples_seen} examples")
            rate = (examples_seen - started_at) / (time.monotonic() - started)
            progress.set_postfix(phase=phase, loss=f"{mean_loss:.4f}")
            if accelerator.is_main_process:
                log({"examples": examples_seen, "phase": phase, "loss": mean_loss, "examples_per_second": rate})
            running_loss, running_count = 0.0, 0

        if accelerator.is_main_process and validation is not None and (crossed(arguments.validation_every) or finished):
            ema.store(parameters)
            ema.copy_to(parameters)
            unwrapped.eval()
            figures = validate(averaged_pipeline(), validation, phase, arguments.seed)
            ema.restore(parameters)
            log({"examples": examples_seen, "phase": phase, **figures})
            accelerator.print(f"{examples_seen} examples: {figures}")

        if accelerator.is_main_process and (crossed(arguments.checkpoint_every) or finished):
            state = {
                "model": unwrapped.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
            }
            save_checkpoint(run_folder, examples_seen, state, arguments.keep_checkpoints)

    if accelerator.is_main_process:
        ema.copy_to(parameters)
        averaged_pipeline().save_pretrained(run_folder / "pipeline")
        accelerator.print(f"pipeline saved to {run_folder / 'pipeline'}")


if __name__ == "__main__":
    main()
