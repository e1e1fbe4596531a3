"""Train a diffusion autoencoder in two phases: t = 1 for the first quarter of the examples, then t uniform in [0, 1].

One process (a GPU, or the CPU if there is none), and the same without this file:

    python examples/train_two_phase.py --preset small-64 --dataset path/to/images --output runs/mine
    diffae-hub train --preset small-64 --dataset path/to/images --output runs/mine

Several GPUs, or two CPU processes:

    accelerate launch --num_processes 4 examples/train_two_phase.py ...
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 examples/train_two_phase.py ...

Fine-tune a model (bundled, a folder, from the Hub, or converted from an official checkpoint):

    python examples/train_two_phase.py --pretrained-model cifar10-32-small --dataset path/to/images --output runs/mine

The data set is a folder of images, a parquet file, a `datasets` folder or a Hub dataset. The preset holds the
experiment. A JSON file (--config), then named flags, then --set KEY=VALUE override it. `--help` lists the flags.
To read on:

    training/presets.json    the experiments: the paper's tables, the official networks, small ones
    training/loop.py         the loop: resume, train, record, validate, save
    training/trainer.py      one step: Algorithms 1 and 2, Adam, averaged weights
    training/objective.py    the loss

The run folder receives configuration.json, metrics.jsonl, checkpoints, pictures and, at the end, the pipeline with
averaged (EMA) weights, which `DiffusionAutoencoderPipeline.from_pretrained` loads. SIGTERM and Ctrl-C save and end the
run. --resume-from-checkpoint latest continues it as if it had not been interrupted. With a larger --training-examples
it continues beyond the end, with the same first phase; a learning rate that fell to zero rises again.
"""

import sys

from diffae_hub.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
