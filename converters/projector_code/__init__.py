"""Code that goes into `projector/` of the xtuner format, for readers that trust remote code."""
