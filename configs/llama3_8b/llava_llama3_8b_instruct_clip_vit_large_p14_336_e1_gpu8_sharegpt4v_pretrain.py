"""Stage 1 of LLaVA-Llama-3-8B v1.1: 9742 micro-batches of 128 images on 8 GPUs, two a step."""

from mmengine.config import read_base

with read_base():
    from ..base.data_sharegpt4v_1246k import *
    from ..base.llama3_8b_clip_l336 import *
    from ..base.pretrain import *

batch_size = 16
accumulative_counts = 2
save_steps = 1000
evaluation_freq = 1000
