"""Find the best recipe for few labels, judged on those labels alone."""
