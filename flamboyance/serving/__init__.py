"""The server of `flamboyance serve`: OpenAI's chat completions over a Flamingo."""
