"""Studies: comparisons of methods over label budgets and seeds."""
