"""Weights for other libraries, and batch norm put into weights pretrained without."""
