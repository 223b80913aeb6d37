"""flamingo-small's training data: real pictures and texts, built from packages of npm and Debian."""
