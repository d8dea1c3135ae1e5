"""Helpers that know nothing of learning."""
