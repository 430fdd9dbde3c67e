"""Benchmarks (installed as llava_tools.eval)."""
