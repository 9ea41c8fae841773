"""A smaller vocabulary, for a tokenizer and for its model."""
