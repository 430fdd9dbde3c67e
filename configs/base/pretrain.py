"""Stage 1: only the projector learns."""

freeze_llm = True
freeze_visual_encoder = True
sampler = "shuffle"
lr = 1e-3
evaluation_inputs = ["请描述一下这张图片", "Please describe this picture"]
