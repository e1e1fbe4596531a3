"""Converts official DiffAE checkpoints to pipeline folders and back."""
