"""Settings as frozen dataclasses, and the loader that reads recipes into them."""
