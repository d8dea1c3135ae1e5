"""The version, where every floor can import it."""

__version__ = "0.1.0"
