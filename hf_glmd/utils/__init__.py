"""Files, text and machines: what every room uses."""
