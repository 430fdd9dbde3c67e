"""The training loop, its two engines, and what hangs on them."""
