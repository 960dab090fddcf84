"""The reference trainer: STCA and the models it is compared with, training loop, metrics, checkpoints, scoring."""
