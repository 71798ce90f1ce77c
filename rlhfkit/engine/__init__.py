"""Training and sampling: the loop, checkpoints, run directories, generation."""
