"""Callbacks that the command line adds to every run; each also works with a plain Trainer."""
