"""Evaluation by the paper's protocol: one metric per file."""
