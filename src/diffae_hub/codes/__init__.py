"""Latent codes of whole data sets."""
