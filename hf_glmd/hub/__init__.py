"""Folders to the Hugging Face Hub."""
