"""The contrastive pretraining: class queues, loss, metrics, and the trainer (paper section 4)."""
