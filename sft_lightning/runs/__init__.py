"""Runs on disk: folders, locks, lineage and provenance."""
