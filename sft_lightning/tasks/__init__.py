"""What is predicted: heads, losses and metrics of a kind of target."""
