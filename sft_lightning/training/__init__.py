"""What a training uses besides the model: optimizers, schedules, averages and callbacks."""
