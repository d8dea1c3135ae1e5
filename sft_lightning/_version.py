"""The version, where every floor can import it."""

__version__ = "0.2.0"
