"""Writing models in the formats of other tools (installed as llava_tools.converters)."""
