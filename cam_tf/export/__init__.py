"""What leaves the notebook: a classifier and its maps as a SavedModel."""
