"""Which trained network to start from: candidates, transferability scores and rankings."""
