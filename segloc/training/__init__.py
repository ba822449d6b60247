"""Shared by pretraining and fine-tuning: loop, processes, checkpoints, schedules, run folder."""
