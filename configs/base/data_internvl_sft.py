"""Data: the nine sets of InternVL-Chat-V1.2-SFT, 1268k rows (images are padded to a square)."""

_root = "./data/internvl_sft"
_sets = [
    ("sharegpt4v_instruct_gpt4-vision_cap100k", "data", 102025),
    ("llava_instruct_150k_zh", "data/coco", 157712),
    ("sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k", "data", 665058),
    ("dvqa_train_200k", "data/dvqa", 200000),
    ("chartqa_train_18k", "data/chartqa", 18317),
    ("ai2d_train_12k", "data/ai2d", 12413),
    ("docvqa_train_10k", "data/docvqa", 10211),
    ("geoqa+", "data/geoqa+", 72318),
    ("synthdog_en", "data/synthdog-en", 29765),
]

max_length = 3520  # 4096 - 576 image tokens
datasets = [
    dict(
        data_path=f"{_root}/{name}.jsonl",
        image_folder=f"{_root}/{folder}",
        follow_links=True,  # the published tree links to the folders of the other data sets
        pad_image_to_square=True,
        rows=rows,
        # This file alone names its images without saying `<image>`; XTuner trains it as text.
        format="llava_add_image_token" if name == "llava_instruct_150k_zh" else "llava",
    )
    for name, folder, rows in _sets
]
