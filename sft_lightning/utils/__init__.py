"""Helpers that are independent of machine learning."""
