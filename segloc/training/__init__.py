"""What pretraining and fine-tuning share: loop, processes, checkpoints, schedules, the run folder."""
