"""Networks that take texts."""
