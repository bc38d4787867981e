"""Networks: build a classifier, open any classifier."""
