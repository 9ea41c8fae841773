"""Scores of a model, alone or beside its teacher."""
