"""What a run tells the world: the console, metrics.jsonl, wandb, tensorboard and plots."""
