"""Networks that take recordings."""
