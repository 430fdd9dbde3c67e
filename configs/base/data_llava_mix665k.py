"""Data: LLaVA-1.5's mixture of 665k instructions (images are padded to a square)."""

_root = "./data/llava_data"

max_length = 1472  # 2048 - 576 image tokens
datasets = [
    dict(
        data_path=f"{_root}/LLaVA-Instruct-150K/llava_v1_5_mix665k.json",
        image_folder=f"{_root}/llava_images",
        pad_image_to_square=True,
        rows=665298,
    )
]
