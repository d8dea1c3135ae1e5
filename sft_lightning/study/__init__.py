"""Comparisons of methods: baselines, and the quickstart as the first of them."""
