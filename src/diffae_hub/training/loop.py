"""The training loop: what `diffae-hub train` and `examples/train_two_phase.py` run, in each of their processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from tqdm.auto import tqdm

from .. import __version__
from ..data.errors import TrainingError
from ..data.loader import Batch
from ..files import new_folder, write_png, write_text
from ..hub.push import ensure_repository, push_pipeline
from ..images import to_pil, to_uint8
from ..model_card import figures_of_run, write_model_card
from ..pipelines.pipeline_diffusion_autoencoder import DiffusionAutoencoderPipeline
from .batches import open_batches
from .checkpoints import (
    check_same_experiment,
    checkpoint_files,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
    set_aside_newer,
)
from .options import TrainingOptions, resolve_experiment
from .presets import TrainingPreset
from .run_folder import (
    CONFIGURATION,
    append_metrics,
    is_validated,
    own_run_folder,
    read_metrics,
    rewind_metrics,
)
from .stop import LossMonitor, StopSignal, check_finite_weights
from .trainer import TwoPhaseTrainer
from .validation import draw_curves, load_validation_images, picture_grid, validate


def train(options: TrainingOptions, assignments: Sequence[str] = ()) -> None:
    """Trains, from the beginning or from a checkpoint, until all examples are seen or a signal comes.

    Args:
        options: What to train, on what, and where to.
        assignments: Further overrides of the experiment, texts `KEY=VALUE`.

    Raises:
        ValueError: If the options, the data or the checkpoint do not fit; nothing was trained.
        TrainingError: If the training cannot go on.
        OSError: If something cannot be written.
    """
    pretrained = None
    if options.pretrained_model is not None:
        pretrained = DiffusionAutoencoderPipeline.from_pretrained(options.pretrained_model)
    preset = resolve_experiment(options, assignments, pretrained)
    options = options.for_experiment(preset)
    with StopSignal() as stop_signal:
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            # The other processes wait while the first one validates.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
            log_with=None if options.report_to == "none" else options.report_to,
            project_dir=options.output / "logs",
        )
        options.check(preset, accelerator.num_processes, accelerator.device.type)
        owned = own_run_folder(options.output) if accelerator.is_main_process else nullcontext(lambda: None)
        with owned as check_lock:
            run = _Run(options, preset, accelerator, stop_signal, check_lock)
            run.build(pretrained)
            run.resume()
            run.open_data()
            run.write_beginning()
            run.train()
            if run.trainer.finished:
                run.write_end()


class _Run:
    """A run in one of its processes. Its methods are its stages, called in their order by `train`."""

    def __init__(
        self,
        options: TrainingOptions,
        preset: TrainingPreset,
        accelerator: Accelerator,
        stop_signal: StopSignal,
        check_lock: Callable[[], None],
    ) -> None:
        self.options, self.preset, self.folder = options, preset, options.output
        self.accelerator, self.is_main = accelerator, accelerator.is_main_process
        self.stop_signal, self.check_lock = stop_signal, check_lock
        self.monitor = LossMonitor(accelerator, stop_signal)
        self.experiment = {**preset.to_dict(), "seed": options.seed}  # what a resumed run must repeat
        self.saved_data: dict[str, Any] | None = None  # that of the checkpoint
        self.stream_positions: list[Any] | None = None  # by process
        self.skipped: set[str] = set()  # images that could not be read
        self.saved_at: int | None = None  # examples seen at the last checkpoint

    # ---- before the first step ------------------------------------------------------------------------------------

    def build(self, pretrained: DiffusionAutoencoderPipeline | None) -> None:
        """Networks, optimizer and averages; prints the configuration."""
        options, accelerator = self.options, self.accelerator
        accelerator.wait_for_everyone()  # until the folder is this run's
        if checkpoint_files(self.folder) and not options.resume_from_checkpoint:
            raise ValueError(
                f"output {self.folder} holds checkpoints: continue with --resume-from-checkpoint latest, "
                "or name another folder"
            )
        self.configuration = {
            "preset": options.preset,
            "experiment": self.preset.to_dict(),
            "run": options.to_dict(),
            "num_processes": accelerator.num_processes,
            "diffae_hub": __version__,
            **{name: version(name) for name in ("torch", "diffusers", "accelerate", "datasets")},
        }
        accelerator.print(json.dumps(self.configuration, indent=2))
        self.trainer = TwoPhaseTrainer(
            self.preset,
            accelerator,
            seed=options.seed,
            pretrained=pretrained,
            channels_last=options.channels_last,
            gradient_checkpointing=options.gradient_checkpointing,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            compiled=options.compile,
        )

    def resume(self) -> None:
        """Goes on from the checkpoint that was asked for."""
        wanted = self.options.resume_from_checkpoint
        if wanted == "latest":
            path, state = load_latest_checkpoint(self.folder, self.accelerator.print)
            if state is None:
                self.accelerator.print(f"no checkpoint in {self.folder} yet: starting anew")
        elif wanted:
            path = Path(wanted)
            state = load_checkpoint(path)
        if not wanted or state is None:
            return
        check_same_experiment(state["experiment"], self.experiment)
        self.trainer.load_state_dict(state, state["examples_seen"])
        self.monitor.load_state_dict(state["losses"])
        self.saved_data, self.stream_positions = state["data"], state["stream_positions"]
        self.accelerator.print(f"resumed from {path} at {self.trainer.examples_seen} examples")

    def open_data(self) -> None:
        """The batches of this process's shares, from the examples seen on, and the validation images."""
        options, trainer = self.options, self.trainer
        self.loader, self.data = open_batches(
            options, self.preset, self.accelerator, trainer.examples_seen, self.saved_data, self.stream_positions
        )
        self.validation_images = None
        if self.is_main and options.validation_dataset:
            self.validation_images = load_validation_images(
                options.validation_dataset,
                options.validation_split,
                options.image_column,
                options.validation_images,
                self.preset,
            )

    def write_beginning(self) -> None:
        """The configuration, now that nothing speaks against the run; nothing beyond the checkpoint stays."""
        options, examples_seen = self.options, self.trainer.examples_seen
        self.hub_model_id = None
        if self.is_main and options.push_to_hub:  # not after days of training is the time to learn of a missing token
            name = options.hub_model_id or self.folder.resolve().name
            self.hub_model_id = ensure_repository(name, options.hub_private)
        if self.is_main:
            write_text(self.folder / CONFIGURATION, json.dumps({**self.configuration, "data": self.data}, indent=2))
            for path in set_aside_newer(self.folder, examples_seen):
                print(f"a checkpoint beyond {examples_seen} examples is set aside: {path}", flush=True)
            rewind_metrics(self.folder, examples_seen)
        if options.report_to != "none":
            plain = {
                name: value if isinstance(value, (int, float)) else str(value)
                for name, value in self.experiment.items()
            }
            # TensorBoard leaves out what was recorded after the checkpoint, which is recorded again.
            after = {"tensorboard": {"purge_step": examples_seen + 1}}
            self.accelerator.init_trackers("two_phase", config=plain, init_kwargs=after)

    # ---- the training ---------------------------------------------------------------------------------------------

    def train(self) -> None:
        """The steps, and between them records, checkpoints and validations; a checkpoint at the end.

        The order of the data, too, depends on the seed and on the examples seen, on nothing else.
        """
        options, trainer, monitor = self.options, self.trainer, self.monitor
        self.progress = tqdm(
            total=self.preset.training_examples,
            initial=trainer.examples_seen,
            unit="img",
            mininterval=5,
            disable=not self.is_main,
        )
        try:
            missed = trainer.examples_seen > 0 and not is_validated(
                self.folder, trainer.examples_seen
            )  # killed between
            if missed and self._due(options.validation_every):
                self._validate()
            self.saved_at = trainer.examples_seen if checkpoint_files(self.folder) else None
            self._start_clock()
            batches = iter(self.loader)
            while not trainer.finished and not monitor.stopping:
                batch = next(batches)
                loss = trainer.step(batch.images)
                monitor.add(trainer.examples_seen // self.preset.batch_size, trainer.examples_seen, loss)
                self._note(batch)

                if self._due(options.log_every):
                    monitor.check()
                    self._record()
                pause = time.monotonic()
                if self._due(options.checkpoint_every):
                    monitor.check()
                    self._checkpoint()
                # After the checkpoint: what goes wrong here, or a machine that is taken away, costs no training.
                if self._due(options.validation_every):
                    self._validate()
                self.clock += time.monotonic() - pause
        finally:
            self.progress.close()  # so that what is printed next has a line of its own
        monitor.check()
        if self.saved_at != trainer.examples_seen:
            self._checkpoint()

        skipped = set(gather_object(sorted(self.skipped)))  # by all processes, who thereby wait for the checkpoint
        if skipped:
            self.accelerator.print(f"{len(skipped)} unreadable images were skipped")
        if not trainer.finished:
            self.accelerator.print(
                f"stopped by {self.stop_signal.name or 'a signal'} at {trainer.examples_seen} examples; "
                "--resume-from-checkpoint latest continues"
            )
            self.accelerator.end_training()

    def _due(self, every: int) -> bool:
        """Whether the last step passed a multiple of `every` examples, or was the last."""
        before = self.trainer.examples_seen - self.preset.batch_size
        return self.trainer.finished or before // every != self.trainer.examples_seen // every

    def _start_clock(self) -> None:
        self.clock, self.clocked_examples = time.monotonic(), self.trainer.examples_seen

    def _note(self, batch: Batch) -> None:
        """What a batch that was trained on leaves: the stream's position, the names of unreadable images, progress."""
        self.position = batch.position
        for line in sorted(set(batch.unreadable) - self.skipped):
            self.skipped.add(line)
            print(f"skipped an unreadable image ({len(self.skipped)} so far): {line}", file=sys.stderr, flush=True)
        self.progress.update(self.preset.batch_size)

    def _log(self, record: dict[str, float]) -> None:
        record = {"examples": self.trainer.examples_seen, "phase": self.trainer.phase, **record}
        append_metrics(self.folder, record)
        self.accelerator.log(record, step=self.trainer.examples_seen)

    def _record(self) -> None:
        """The mean loss since the last record, the learning rate and the speed."""
        seconds = max(time.monotonic() - self.clock, 1e-9)  # of a clock that stands still
        rate = (self.trainer.examples_seen - self.clocked_examples) / seconds
        loss = self.monitor.mean()
        self.progress.set_postfix(phase=self.trainer.phase, loss=f"{loss:.4f}")
        if self.is_main:
            self._log({"loss": loss, "learning_rate": self.trainer.learning_rate, "examples_per_second": rate})
        self._start_clock()

    def _checkpoint(self) -> None:
        if self.options.streaming and self.trainer.examples_seen != self.saved_at:
            self.stream_positions = gather_object([self.position])
        if self.is_main:
            self.check_lock()
            check_finite_weights(self.trainer.parameters, self.trainer.examples_seen)
            state = {
                **self.trainer.state_dict(),
                "losses": self.monitor.state_dict(),
                "stream_positions": self.stream_positions,
                "experiment": self.experiment,
                "data": self.data,
            }
            save_checkpoint(self.folder, self.trainer.examples_seen, state, self.options.keep_checkpoints)
        self.saved_at = self.trainer.examples_seen

    def _validate(self) -> None:
        """Figures and a picture of the averaged weights; nothing without validation images."""
        if self.validation_images is None:
            return
        options, examples_seen = self.options, self.trainer.examples_seen
        with self.trainer.averaged_weights():
            images = self.validation_images.to(self.accelerator.device)
            figures, pictures = validate(
                self.trainer.pipeline(), images, self.trainer.phase, options.validation_steps, options.seed
            )
        grid = picture_grid(list(pictures.values()))
        (self.folder / "validation").mkdir(exist_ok=True)
        write_png(self.folder / "validation" / f"{examples_seen:010d}.png", to_pil(grid))
        if options.report_to != "none":
            layout = {"dataformats": "NHWC"} if options.report_to == "tensorboard" else {}
            pixels = to_uint8(grid).permute(1, 2, 0).numpy()
            tracker = self.accelerator.get_tracker(options.report_to)
            tracker.log_images({"reconstructions": pixels[None]}, step=examples_seen, **layout)
        self._log(figures)
        draw_curves(self.folder / "training.png", read_metrics(self.folder))
        self.progress.write(f"{examples_seen} examples: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    # ---- after the last step --------------------------------------------------------------------------------------

    def write_end(self) -> None:
        """The pipeline with averaged weights and its card; uploads it if that was asked for."""
        if self.is_main:
            self.stop_signal.restore()
            pipeline_folder = self.folder / "pipeline"
            with self.trainer.averaged_weights(), new_folder(pipeline_folder) as partial:
                self.trainer.pipeline().save_pretrained(partial)
                write_model_card(partial, self._figures())
            print(f"pipeline saved to {pipeline_folder}")
            if self.hub_model_id:
                self._push(pipeline_folder)
        self.accelerator.end_training()

    def _figures(self) -> dict[str, Any]:
        phase1_fraction = self.trainer.phase1_examples / self.preset.training_examples  # of a run that was prolonged
        return figures_of_run(
            self.hub_model_id or self.folder.resolve().name,
            self.options.dataset,
            {**self.preset.to_dict(), "phase1_fraction": phase1_fraction},
            {
                name: sum(p.numel() for p in part.parameters())
                for name, part in self.trainer.autoencoder.named_children()
            },
            read_metrics(self.folder),
            0 if self.validation_images is None else len(self.validation_images),
            self.options.validation_steps,
            self.options.hub_license,
        )

    def _push(self, pipeline_folder: Path) -> None:
        try:
            push_pipeline(pipeline_folder, self.hub_model_id, private=self.options.hub_private)
        except Exception as error:  # whatever it was: the pipeline is there, and the upload can be repeated
            again = f"diffae-hub push {pipeline_folder} {self.hub_model_id}"
            raise TrainingError(f"the pipeline was not uploaded; `{again}` does it: {error}") from error
        print(f"pushed to {self.hub_model_id}")
