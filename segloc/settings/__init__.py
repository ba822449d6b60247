"""Every setting: frozen dataclasses, and the loader that reads recipes into them."""
