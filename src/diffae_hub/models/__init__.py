"""The networks: encoder, decoder and latent code model."""
