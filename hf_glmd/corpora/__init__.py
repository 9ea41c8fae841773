"""Text to count and to train on: a corpus every machine already has, and any other from the Hub or from files."""
