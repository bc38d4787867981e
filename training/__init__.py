"""Scripts that train classifiers: ``python -m training.train``, from the root of the repository."""
