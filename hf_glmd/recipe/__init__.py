"""A whole run, as a YAML file describes it."""
