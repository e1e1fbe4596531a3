"""The pipeline and what it needs to take in and give out images."""
