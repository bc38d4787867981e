"""Data: images, class names, demo photos."""
