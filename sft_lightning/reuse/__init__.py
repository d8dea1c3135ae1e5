"""Reuse of trained models between tasks: parts, ranking, degree of fine-tuning, lineage."""
