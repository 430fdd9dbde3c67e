"""Stage 1 of LLaVA-Phi-3-mini v1.1: 9742 micro-batches of 128 images on 8 GPUs, two a step."""

from mmengine.config import read_base

with read_base():
    from ..base.data_sharegpt4v_1246k import *
    from ..base.phi3_mini_4k_clip_l336 import *
    from ..base.pretrain import *

batch_size = 16
accumulative_counts = 2
save_steps = 1000
evaluation_freq = 1000
