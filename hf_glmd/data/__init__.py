"""Texts to count and to train on, as rows and as batches."""
