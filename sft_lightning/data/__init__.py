"""From a word that names pictures to batches."""
