"""Training recipes under their published names (installed as llava_tools.configs)."""
