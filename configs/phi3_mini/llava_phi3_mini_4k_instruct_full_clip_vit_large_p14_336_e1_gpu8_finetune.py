"""Stage 2 of LLaVA-Phi-3-mini (LLaVA-1.5 data): 5198 steps of 128 rows on 8 GPUs."""

from mmengine.config import read_base

with read_base():
    from ..base.data_llava_mix665k import *
    from ..base.finetune import *
    from ..base.phi3_mini_4k_clip_l336 import *

pretrained_pth = (
    "./work_dirs/llava_phi3_mini_4k_instruct_clip_vit_large_p14_336_e1_gpu8_pretrain/iter_2181.pth"
)
save_steps = 1000
evaluation_freq = 1000
