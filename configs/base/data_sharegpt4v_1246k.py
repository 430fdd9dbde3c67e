"""Data: the 1246k long captions of ShareGPT4V-PT (images are cropped, not padded)."""

_root = "./data/sharegpt4v"

max_length = 3520  # 4096 - 576 image tokens
datasets = [
    dict(
        data_path=f"{_root}/share-captioner_coco_lcs_sam_1246k_1107.json",
        image_folder=f"{_root}/data",
        follow_links=True,  # the published tree links to the folders of the other data sets
        rows=1246901,
    )
]
