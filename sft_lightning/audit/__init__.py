"""Checks before training: leaks, duplicates, damaged files, wrong labels."""
