"""Localization: boxes from maps."""
