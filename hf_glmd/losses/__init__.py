"""The word-prediction loss and the soft-label loss."""
