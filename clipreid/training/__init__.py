"""Training: the loop that all stages of all methods go through, batches, checkpoints, a run and its folder."""
