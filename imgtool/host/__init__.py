"""Floor 2: one module per kind of side effect. None of them knows what a domain is."""
