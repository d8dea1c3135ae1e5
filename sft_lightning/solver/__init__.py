"""One call from a source with few labels to a model, a verdict, and the next labels."""
