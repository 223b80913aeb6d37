"""How flamingo-small was trained and measured."""
