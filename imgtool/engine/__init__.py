"""Floor 4: the transaction."""
