"""Stage 1: only the projector learns."""

freeze_llm = True
freeze_visual_encoder = True
sampler = "shuffle"
lr = 1e-3
