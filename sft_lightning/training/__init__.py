"""Optimizers, schedules, weight averages, guards and callbacks of a training."""
