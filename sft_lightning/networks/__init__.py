"""Networks, their weights and adapters, in plain torch."""
