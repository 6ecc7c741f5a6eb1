"""Figures: one function a kind of figure; results or tables in, axes or a figure out."""
