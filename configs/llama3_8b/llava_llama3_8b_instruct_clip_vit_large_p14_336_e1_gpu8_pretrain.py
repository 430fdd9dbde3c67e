"""Stage 1 of LLaVA-Llama-3-8B (LLaVA-1.5 data): 2181 steps of 256 images on 8 GPUs."""

from mmengine.config import read_base

with read_base():
    from ..base.data_llava_558k import *
    from ..base.llama3_8b_clip_l336 import *
    from ..base.pretrain import *

batch_size = 32
save_steps = 500
evaluation_freq = 500
