"""What a student can learn from its teacher, one class each; all of them stand in `kinds.OBJECTIVES`."""
