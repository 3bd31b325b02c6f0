"""What a run tells the world: the metrics.jsonl, wandb, tensorboard and plots."""
