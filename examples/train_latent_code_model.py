"""Train a latent code model, the third part of a diffusion autoencoder, which draws codes for new images.

    diffae-hub encode photos/ --split train --output codes
    python examples/train_latent_code_model.py codes --output mine
    diffae-hub sample --model mine --num-images 16 --output samples

The recipe is the official one (an MLP that predicts noise, constant beta 0.008, L1 loss) or, with --recipe velocity,
velocity on a shifted cosine schedule. The same command continues a run that was stopped. It reports the Fréchet
distance of sampled to held-out codes beside that of Gaussian codes, and how near samples are to training codes,
relative to held-out codes; far below 1 means that the model copies. Several GPUs:

    accelerate launch examples/train_latent_code_model.py codes --output mine
"""

import sys

from diffae_hub.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train-latent", *sys.argv[1:]]))
