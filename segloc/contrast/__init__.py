"""Contrastive pretraining: class queues, loss, metrics and trainer (paper section 4)."""
