"""Recordings: where they come from, how they are decoded and cut into windows, and their views."""
