"""Tasks as cloze questions: a pattern with a blank, and words that stand for the answers."""
