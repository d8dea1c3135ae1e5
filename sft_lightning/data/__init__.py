"""Data: sources, splits, sampling and loading."""
