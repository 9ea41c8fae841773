"""From counts to a smaller vocabulary: count, select, map, rewrite. Knows nothing of models."""
