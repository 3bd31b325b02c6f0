"""Training: the engine and its step, the fit loop, checkpoints, evaluation loss, schedules and the export at the end."""
