"""How each kind of model answers a prompt."""
