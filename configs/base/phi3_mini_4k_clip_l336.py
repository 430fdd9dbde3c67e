"""Model: Phi-3-mini-4k-instruct behind CLIP ViT-L/14 at 336 pixels (576 image tokens)."""

llm_name_or_path = "microsoft/Phi-3-mini-4k-instruct"
visual_encoder_name_or_path = "openai/clip-vit-large-patch14-336"
prompt_template = "phi3_chat"
