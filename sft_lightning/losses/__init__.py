"""Losses in plain torch, one idea a file."""
