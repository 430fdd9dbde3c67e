"""The few values that data, model and converters must agree on (LLaVA's own conventions)."""

IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = -200  # stands for one image in `input_ids`, before the features take its place
IGNORE_ID = -100  # label of a position without loss, as in torch's cross_entropy
