"""Maps: which classes, which weights, the map, the result."""
