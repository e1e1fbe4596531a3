"""Official DiffAE checkpoints to pipeline folders and back."""
