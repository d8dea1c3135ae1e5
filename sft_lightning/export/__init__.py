"""Export of trained models: weights, programs and model cards."""
