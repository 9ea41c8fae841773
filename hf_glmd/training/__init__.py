"""Teachers, configuration and the trainer."""
