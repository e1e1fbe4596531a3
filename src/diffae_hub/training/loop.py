"""The training loop, which `diffae-hub train` and `examples/train_two_phase.py` run in each of their processes."""

import json
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from .. import __version__
from ..data import TrainingError
from ..files import append_json_lines, new_folder, read_json_lines, write_png, write_text
from ..hub import push_pipeline
from ..images import image_grid
from ..model_card import figures_of_run, write_model_card
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from ..publishing import ensure_repository
from .batches import open_batches
from .checkpoints import (
    check_equal,
    checkpoint_files,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    set_aside_newer,
)
from .options import TrainingOptions, resolve_experiment
from .presets import TrainingPreset
from .run_folder import CONFIGURATION, METRICS, own_run_folder, rewind_metrics
from .stop import LossMonitor, StopSignal, check_finite_weights
from .trainer import TwoPhaseTrainer
from .validation import draw_curves, load_validation_images, validate

_COLUMNS = 8  # of a validation picture
_UNFINISHED = "pipeline-unfinished"  # folder of a stopped run's pipeline
_CHECKPOINT_SECONDS = 30 * 60  # longest time without one, unless --checkpoint-every is given


def train(options: TrainingOptions) -> str | None:
    """Trains from the beginning or a checkpoint. Returns None at the end, or the name of the signal that stopped it.

    Raises ValueError, before any training, if the options, the data or the checkpoint do not fit. Raises TrainingError
    if the run fails after it has begun; the message names the last checkpoint.
    """
    pretrained = None
    if options.pretrained_model is not None:
        pretrained = DiffusionAutoencoderPipeline.from_pretrained(options.pretrained_model)
    preset = resolve_experiment(options, pretrained)
    accelerator = Accelerator(
        mixed_precision=options.mixed_precision,
        # The other processes wait while the first one validates.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=options.output / "logs",
    )
    options.check(preset, accelerator)
    with own_run_folder(options.output) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()  # until this run has locked the folder
        run = _Run(options, preset, accelerator, pretrained)
        run.write_beginning()
        try:
            stopped_by = run.train()
            if run.trainer.finished:
                run.write_end()
            return stopped_by
        except Exception as error:
            last = next(reversed(checkpoint_files(options.output)), "none")
            raise TrainingError(f"{error}; the last good checkpoint is {last}") from error


class _Run:
    """A run in one of its processes. Its methods are stages, which `train` calls in order."""

    # ---- before the first step ------------------------------------------------------------------------------------

    def __init__(
        self,
        options: TrainingOptions,
        preset: TrainingPreset,
        accelerator: Accelerator,
        pretrained: DiffusionAutoencoderPipeline | None,
    ) -> None:
        self.options, self.preset, self.folder = options, preset, options.output
        self.metrics = self.folder / METRICS
        self.accelerator, self.is_main = accelerator, accelerator.is_main_process
        every = max(100_000, preset.training_examples // 100)
        self.checkpoint_every = options.checkpoint_every or every
        self.validation_every = options.validation_every or every
        if checkpoint_files(self.folder) and not options.resume_from_checkpoint:
            raise ValueError(
                f"output {self.folder} holds checkpoints: continue with --resume-from-checkpoint latest, "
                "or name another folder"
            )
        self.configuration = {
            "preset": options.preset,
            "experiment": asdict(preset),
            "run": options.to_dict(),
            "num_processes": accelerator.num_processes,
            "diffae_hub": __version__,
            **{name: version(name) for name in ("torch", "diffusers", "accelerate", "datasets")},
        }
        accelerator.print(json.dumps(self.configuration, indent=2))
        self.trainer = TwoPhaseTrainer(preset, options, accelerator, pretrained)
        # Settings that a resumed run must keep.
        self.experiment = {**asdict(preset), "seed": options.seed, "more_ema_decays": options.more_ema_decays}
        state = self._resume()
        self.loader, self.data = open_batches(options, preset, accelerator, state)
        self.position = state["stream_positions"][accelerator.process_index] if state and options.streaming else None
        self.validation_images = None
        if self.is_main and options.validation_dataset:
            self.validation_images = load_validation_images(options, preset)

    def _resume(self) -> dict[str, Any] | None:
        """Loads the requested checkpoint into the trainer and returns its state; None if there is none."""
        wanted = self.options.resume_from_checkpoint
        if not wanted:
            return None
        if wanted == "latest":
            state = load_latest_checkpoint(self.folder, self.accelerator.print)
            if state is None:
                self.accelerator.print(f"no checkpoint in {self.folder} yet: starting anew")
                return None
        else:
            state = load_checkpoint(Path(wanted))
            self.accelerator.print(f"resumed from {wanted} at {state['examples_seen']} examples")
        defaults = {**asdict(TrainingPreset({}, {})), "more_ema_decays": []}  # of options newer than the checkpoint
        check_equal({**defaults, **state["experiment"]}, self.experiment)
        self.trainer.load_state_dict(state)
        return state

    def write_beginning(self) -> None:
        """Writes the configuration, after all checks, and clears what is newer than the checkpoint."""
        options, examples_seen = self.options, self.trainer.examples_seen
        self.hub_model_id = None
        if self.is_main:
            if options.push_to_hub:  # reports a missing token now, not after days of training
                name = options.hub_model_id or self.folder.resolve().name
                self.hub_model_id = ensure_repository(name, options.hub_private)
            write_text(self.folder / CONFIGURATION, json.dumps({**self.configuration, "data": self.data}, indent=2))
            for path in set_aside_newer(self.folder, examples_seen):
                print(f"a checkpoint beyond {examples_seen} examples is set aside: {path}", flush=True)
            rewind_metrics(self.folder, examples_seen)
        if options.report_to != "none":
            plain = {
                name: str(value) if isinstance(value, (dict, tuple)) else value
                for name, value in self.experiment.items()
            }
            # TensorBoard drops the records after the checkpoint, because they are made again.
            after = {"tensorboard": {"purge_step": examples_seen + 1}}
            self.accelerator.init_trackers("two_phase", config=plain, init_kwargs=after)

    # ---- the training ---------------------------------------------------------------------------------------------

    def train(self) -> str | None:
        """Takes the steps, with records, checkpoints and validations between them and a checkpoint at the end.

        If a signal stops it early, it also saves a pipeline and returns the signal's name. The order of the data, too,
        depends only on the seed and the examples seen.
        """
        options, trainer = self.options, self.trainer
        skipped: set[str] = set()  # images that could not be read
        self.progress = tqdm(
            total=self.preset.training_examples,
            initial=trainer.examples_seen,
            unit="img",
            mininterval=5,
            disable=not self.is_main,
        )
        with StopSignal() as stop_signal, self.progress:
            self.monitor = LossMonitor(self.accelerator, stop_signal)
            last_record = (read_json_lines(self.metrics) or [{}])[-1]
            validated = any(name.startswith("psnr_") for name in last_record)
            if trainer.examples_seen > 0 and trainer.due(self.validation_every) and not validated:
                self._validate()  # the run was killed between checkpoint and validation
            self.saved_at = trainer.examples_seen if checkpoint_files(self.folder) else None
            self.saved_time = time.monotonic()
            self._start_clock()
            batches = iter(self.loader)
            while not trainer.finished and not self.monitor.stopping:
                batch = next(batches)
                loss = trainer.step(batch.images)
                self.monitor.add(trainer.examples_seen // trainer.batch_size, loss)
                self.position = batch.position
                for line in sorted(set(batch.unreadable) - skipped):
                    skipped.add(line)
                    print(f"skipped an unreadable image ({len(skipped)} so far): {line}", file=sys.stderr, flush=True)
                self.progress.update(trainer.batch_size)

                if trainer.due(options.log_every):
                    self._record()
                if trainer.due(self.checkpoint_every) or self._long_without_checkpoint():
                    self._checkpoint()
                # After the checkpoint, so that an error or the loss of the machine costs no training.
                if trainer.due(self.validation_every):
                    self._validate()
            if self.saved_at != trainer.examples_seen:
                self._checkpoint()
            if not trainer.finished and self.is_main:
                try:
                    self._save_pipeline(_UNFINISHED, trainer.averages)
                except OSError as error:  # the checkpoint, which matters more, is written
                    print(f"no {_UNFINISHED} was written: {error}", file=sys.stderr, flush=True)

        skipped = set(gather_object(sorted(skipped)))  # of all processes, which wait here for the checkpoint
        if skipped:
            self.accelerator.print(f"{len(skipped)} unreadable images were skipped")
        if trainer.finished:
            return None
        name = stop_signal.name or "a signal"  # another process got it
        self.accelerator.print(
            f"stopped by {name} at {trainer.examples_seen} examples; --resume-from-checkpoint latest continues"
        )
        self.accelerator.end_training()
        return name

    def _long_without_checkpoint(self) -> bool:
        """Whether a checkpoint is due by time. Several processes would have to agree on it: they count examples."""
        is_late = time.monotonic() - self.saved_time > _CHECKPOINT_SECONDS
        return is_late and self.accelerator.num_processes == 1 and self.options.checkpoint_every is None

    def _start_clock(self) -> None:
        """Starts to measure the speed, which counts only the steps."""
        self.clock, self.clocked_examples = time.monotonic(), self.trainer.examples_seen

    def _log(self, record: dict[str, float], **how: Any) -> None:
        record = {"examples": self.trainer.examples_seen, "phase": self.trainer.phase, **record}
        append_json_lines(self.metrics, [{**record, **how}])
        self.accelerator.log(record, step=self.trainer.examples_seen)

    def _record(self) -> None:
        """Records the mean loss since the last record, the learning rate and the speed."""
        loss = self.monitor.mean()
        seconds = max(time.monotonic() - self.clock, 1e-9)  # the clock may be coarse
        rate = (self.trainer.examples_seen - self.clocked_examples) / seconds
        self.progress.set_postfix(phase=self.trainer.phase, loss=f"{loss:.4f}")
        if self.is_main:
            self._log({"loss": loss, "learning_rate": self.trainer.learning_rate, "examples_per_second": rate})
        self._start_clock()

    def _checkpoint(self) -> None:
        self.monitor.check()
        positions = gather_object([self.position]) if self.options.streaming else None
        if self.is_main:
            averages = (self.trainer.averages, *self.trainer.more_averages)
            weights = chain(self.trainer.parameters, *(average.shadow_params for average in averages))
            check_finite_weights(weights, self.trainer.examples_seen)
            own = {"stream_positions": positions, "experiment": self.experiment, "data": self.data}
            save_checkpoint(self.folder, {**self.trainer.state_dict(), **own}, self.options.keep_checkpoints)
        self.saved_at, self.saved_time = self.trainer.examples_seen, time.monotonic()
        self._start_clock()

    def _validate(self) -> None:
        """Writes figures and a picture of the averaged weights, if there are validation images."""
        if self.validation_images is None:
            return
        options, examples_seen = self.options, self.trainer.examples_seen
        with self.trainer.averaged_weights():
            images = self.validation_images.to(self.accelerator.device)
            pipeline, phase = self.trainer.pipeline(), self.trainer.phase
            figures, pictures = validate(pipeline, images, phase, options.validation_steps, options.seed)
        rows = [row[:_COLUMNS] for row in pictures.values()]
        picture = image_grid([image for row in rows for image in row], columns=len(rows[0]))
        write_png(self._validation_picture(), picture)
        if options.report_to != "none":
            layout = {"dataformats": "NHWC"} if options.report_to == "tensorboard" else {}
            tracker = self.accelerator.get_tracker(options.report_to)
            pixels = np.atleast_3d(np.asarray(picture))
            tracker.log_images({"reconstructions": pixels[None]}, step=examples_seen, **layout)
        data = {"dataset": options.validation_dataset, "split": options.validation_split}
        self._log(figures, validation={**data, "images": len(images), "steps": options.validation_steps})
        draw_curves(self.folder / "training.png", read_json_lines(self.metrics))
        self.progress.write(f"{examples_seen} examples: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        self._start_clock()

    def _validation_picture(self) -> Path:
        return self.folder / "validation" / f"{self.trainer.examples_seen:010d}.png"

    # ---- after the last step --------------------------------------------------------------------------------------

    def write_end(self) -> None:
        """Saves the pipelines with averaged weights and their cards; uploads the first if requested."""
        if self.is_main:
            pipeline_folder = self._save_pipeline("pipeline", self.trainer.averages)
            for averages in self.trainer.more_averages:
                self._save_pipeline(f"pipeline-ema-{averages.decay}", averages)
            shutil.rmtree(self.folder / _UNFINISHED, ignore_errors=True)
            if self.hub_model_id:
                try:
                    push_pipeline(pipeline_folder, self.hub_model_id, private=self.options.hub_private)
                except Exception as error:  # of any kind: the upload can be repeated
                    again = f"diffae-hub push {pipeline_folder} {self.hub_model_id}"
                    raise TrainingError(f"the pipeline was not uploaded; try again with `{again}`: {error}") from error
                print(f"pushed to {self.hub_model_id}")
        self.accelerator.end_training()

    def _save_pipeline(self, name: str, averages: EMAModel) -> Path:
        path = self.folder / name
        draw_curves(self.folder / "training.png", read_json_lines(self.metrics))
        with self.trainer.averaged_weights(averages), new_folder(path) as partial:
            self.trainer.pipeline().save_pretrained(partial)
            figures = self._figures()
            if averages is self.trainer.averages:
                self._add_pictures(partial, figures)
            else:  # these weights were not validated
                figures |= {"results": [], "evaluation": "These averages were not measured."}
                figures["experiment"]["ema_decay"] = averages.decay
            write_model_card(partial, figures)
        print(f"pipeline saved to {path}", flush=True)
        return path

    def _add_pictures(self, folder: Path, figures: dict[str, Any]) -> None:
        """Copies the last validation picture and the curves for the card in `folder`."""
        for name, path, caption in (
            ("validation.png", self._validation_picture(), "Held-out images over their reconstructions"),
            ("training.png", self.folder / "training.png", "Loss and validation over the examples"),
        ):
            if path.is_file():
                shutil.copy(path, folder / name)
                figures["evaluation"] += f"\n\n![{caption}]({name})"

    def _figures(self) -> dict[str, Any]:
        networks = self.trainer.network.named_children()
        trainer, length = self.trainer, self.preset.training_examples
        phase1_fraction = trainer.phase1_examples / length  # not the preset's if the run was made longer
        if trainer.examples_seen <= trainer.phase1_examples:
            phase1_fraction = 1.0  # so far
        experiment = {**asdict(self.preset), "phase1_fraction": phase1_fraction}
        figures = figures_of_run(experiment, read_json_lines(self.metrics))
        figures["training"]["examples"] = trainer.examples_seen
        if not trainer.finished:
            of_when = "; the figures are of the last validation" if figures["results"] else ""
            figures["limitations"] = [f"Stopped after {trainer.examples_seen:,} of {length:,} examples{of_when}."]
        return {
            "model_name": self.hub_model_id or self.folder.resolve().name,
            "license": self.options.hub_license,
            "dataset": {"name": self.options.dataset},
            **({"base_model": self.options.pretrained_model} if self.options.pretrained_model else {}),
            "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in networks},
            **figures,
        }
