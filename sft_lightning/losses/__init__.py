"""Losses in plain torch, one idea per file."""
