"""The model: its parts, their weights in every format, and generation."""
