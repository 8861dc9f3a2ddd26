"""Floor 3: where domain XML and snapshot metadata live."""
