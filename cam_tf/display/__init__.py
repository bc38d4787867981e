"""Display: overlays and figures."""
