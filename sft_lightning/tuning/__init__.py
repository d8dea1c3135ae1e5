"""Settings found by measuring: learning rate, batch size, precision, degree of fine-tuning."""
