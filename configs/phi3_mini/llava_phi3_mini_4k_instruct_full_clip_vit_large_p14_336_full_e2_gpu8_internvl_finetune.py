"""Stage 2 of LLaVA-Phi-3-mini v1.1: the tower learns too; two epochs, 39620 micro-batches."""

from mmengine.config import read_base

with read_base():
    from ..base.data_internvl_sft import *
    from ..base.finetune import *
    from ..base.phi3_mini_4k_clip_l336 import *

pretrained_pth = "./work_dirs/llava_phi3_mini_4k_instruct_clip_vit_large_p14_336_e1_gpu8_sharegpt4v_pretrain/iter_9742.pth"
freeze_visual_encoder = False
max_epochs = 2
save_steps = 5000
evaluation_freq = 5000
