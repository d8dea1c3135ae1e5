"""Texts: where they come from, how they become tokens, and their views."""
