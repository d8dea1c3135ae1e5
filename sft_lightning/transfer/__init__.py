"""Choice of a start for a transfer: candidates, transferability scores and rankings."""
