"""Teachers: live, averaged, or read from disk."""
