"""Callbacks for images."""
