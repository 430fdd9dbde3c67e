"""Stage 2: the whole LLM and the projector learn; the tower stays as it is."""

freeze_llm = False
freeze_visual_encoder = True
sampler = "length_grouped"
batch_size = 8
accumulative_counts = 2
lr = 2e-5
