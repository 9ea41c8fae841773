"""What is done to models: vocabulary tables cut, token ids moved, layers dropped."""
