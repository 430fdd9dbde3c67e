"""MPT-7B, the whole LLM on openassistant-guanaco, made for one H100.

As in the source, of each dialogue the first question and answer alone.
"""

from mmengine.config import read_base

with read_base():
    from ..base.data_guanaco import *
    from ..base.sft_full import *

llm_name_or_path = "mosaicml/mpt-7b"
datasets = [dict(data_path="./data/openassistant-guanaco", format="guanaco", first_round=True)]
max_length = 2048
batch_size = 8
max_epochs = 3
lr = 5e-5
lr_schedule = "linear"
