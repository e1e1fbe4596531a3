"""Training parts that can be tested alone: presets, the objective, data, the learning-rate rule and checkpoints."""
