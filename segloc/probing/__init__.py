"""Evaluate features without fine-tuning: held-out views, RoI features, classifiers."""
