"""The whole path on one small real task: `llava-tools quickstart`."""
