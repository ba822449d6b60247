"""What features know without fine-tuning: held-out views, RoI features, classifiers."""
