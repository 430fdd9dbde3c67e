"""Data: the 558k captions of LLaVA-Pretrain (images are cropped, not padded)."""

_root = "./data/llava_data/LLaVA-Pretrain"

max_length = 1472  # 2048 - 576 image tokens
datasets = [
    dict(
        data_path=f"{_root}/blip_laion_cc_sbu_558k.json",
        image_folder=f"{_root}/images",
        rows=558128,
    )
]
