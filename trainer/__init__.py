"""The reference trainer: STCA, its attention, training loop, metrics and checkpoints."""
