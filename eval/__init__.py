"""Benchmarks (installed as llava_tools.eval): rows, prompts and scores; answering and reports."""
