"""From folders to models: the parts of a training run, and a finished model of any format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)

from llava_tools.data.images import ImageProcessor
from llava_tools.data.templates import guess_template, template_to_ask
from llava_tools.errors import UserError, first_line
from llava_tools.model.adapters import Adapter
from llava_tools.model.assistant import Assistant as Assistant  # also from here
from llava_tools.model.bits import attach, warn_of_other_bits
from llava_tools.model.filled import load_model as load_model  # also from here
from llava_tools.model.quantization import keep_trainable, quantized_loading
from llava_tools.model.rope import stretch_positions
from llava_tools.model.source import Source, open_adapted
from llava_tools.model.vision import (
    image_processor_source,
    load_strictly,
)

LLAMAS = ("llama", "mistral", "mixtral")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(name_or_path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer exactly as its `tokenizer.json` says.

    Going through the class named in tokenizer_config.json would rebuild the pipeline: a Llama
    class given a byte-level tokenizer.json loses its spaces in transformers 5, without a word.
    """
    try:
        if (Path(name_or_path) / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(name_or_path)
        kind = LlamaTokenizer if _is_bare_llama(Path(name_or_path)) else AutoTokenizer
        return kind.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare Exception on a broken file
        raise UserError(
            f"No usable tokenizer at '{name_or_path}': {first_line(error)}",
            _remote_code_hint(error)
            or "Give a model folder with tokenizer.json, or a hub id that is downloaded already.",
        ) from error


def _is_bare_llama(folder: Path) -> bool:
    """Tell whether a folder has Llama's tokenizer.model and nothing that says how to read it.

    transformers would then leave out the space that SentencePiece puts in front of a text.
    """
    if (folder / "tokenizer_config.json").is_file() or not (folder / "tokenizer.model").is_file():
        return False
    return AutoConfig.from_pretrained(folder).model_type in LLAMAS


def load_llm_config(
    name_or_path: str,
    *,
    trust_remote_code: bool = False,
    max_position_embeddings: int | None = None,
) -> Any:
    """Load the config of a causal LM, its positions stretched if more of them are wanted.

    Raises UserError when there is none, or when its positions cannot be stretched.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"No language model at '{name_or_path}': {first_line(error)}",
            _remote_code_hint(error)
            or "Give a folder with config.json, or a hub id that is downloaded already.",
        ) from error
    values = config.to_dict()
    stretched = stretch_positions(values, max_position_embeddings)
    if stretched == values:
        return config
    try:
        return type(config).from_dict(stretched)
    except (ValueError, StrictDataclassError) as error:
        why = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise UserError(
            f"The positions of '{name_or_path}' ({config.model_type}) cannot be stretched from "
            f"{config.max_position_embeddings} to {max_position_embeddings}: {first_line(why)}",
            "Leave max_position_embeddings out, or choose another language model.",
        ) from error


def _remote_code_hint(error: Exception) -> str:
    """What to do when a model brings its own code, which runs only where a user says so."""
    if "trust_remote_code" not in str(error):
        return ""
    return (
        "The model brings Python code of its own. Once you trust it, allow it for the run: "
        "--cfg-options trust_remote_code=True"
    )


def load_llm(
    name_or_path: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    max_position_embeddings: int | None = None,
    quantization: dict[str, Any] | None = None,
) -> Any:
    """Load a causal LM from a hub id or folder; every weight must be there.

    More `max_position_embeddings` than it has stretch its rotary positions. `quantization` (see
    `QuantizationSpec`) packs its linear layers, all but the output head, while they are read.
    """
    config = load_llm_config(
        name_or_path,
        trust_remote_code=trust_remote_code,
        max_position_embeddings=max_position_embeddings,
    )
    llm: Any = load_strictly(
        AutoModelForCausalLM,
        name_or_path,
        config=config,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        **(quantized_loading(quantization, dtype) if quantization is not None else {}),
    )
    llm.generation_config = GenerationConfig()
    keep_trainable(llm)
    return llm


def draw_llm(
    name_or_path: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    max_position_embeddings: int | None = None,
    quantization: dict[str, Any] | None = None,
) -> Any:
    """Return the causal LM of a hub id or folder with weights drawn anew (torch's seed decides).

    Takes what `load_llm` takes. Weights that are to be trained are never quantised.
    """
    if quantization is not None:
        raise ValueError("weights drawn anew are not quantised")
    config = load_llm_config(
        name_or_path,
        trust_remote_code=trust_remote_code,
        max_position_embeddings=max_position_embeddings,
    )
    llm: Any = AutoModelForCausalLM.from_config(
        config, dtype=dtype, trust_remote_code=trust_remote_code
    )
    llm.generation_config = GenerationConfig()
    return llm


def load_image_processor(name_or_path: str) -> ImageProcessor:
    """Load a tower's preprocessing, also that of an open_clip checkpoint."""
    settings = image_processor_source(name_or_path)
    if settings is not None:
        return ImageProcessor.from_dict(settings)
    return ImageProcessor.from_folder(name_or_path)


def load_assistant(
    path: str | Path,
    *,
    template: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    config: str | None = None,
    adapter: str | Path | None = None,
    quantization: dict[str, Any] | None = None,
) -> Assistant:
    """Open a finished model of any format for chat and evaluation.

    `dtype` auto is the dtype of the files on a GPU and fp32 on a CPU; `device` auto takes the GPU
    when there is one. `config` is needed for a `.pth` without a config.py beside it. `adapter` is a
    folder with a LoRA for the LLM, `quantization` (see `QuantizationSpec`) packs the LLM.

    Raises UserError when the path is no model, or when no template fits its tokenizer.
    """
    source, apart = open_adapted(path, config, adapter, apart=quantization is not None)
    return build_assistant(
        source,
        template=template,
        dtype=dtype,
        device=device,
        quantization=quantization,
        adapter=apart,
    )


def build_assistant(
    source: Source,
    *,
    template: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> Assistant:
    """Load an opened source, as `load_assistant` does; `adapter` stays beside packed weights."""
    where = torch.device(choose_device(device))
    kind = choose_dtype(dtype, where, source)
    model = load_model(source, kind, quantization, where)
    if adapter is not None:
        warn_of_other_bits(adapter, quantization or {})
        attach(model.llm, adapter)
    model = model.to(where).eval()
    tokenizer = load_tokenizer(source.tokenizer_dir)
    check_vocabulary(source, tokenizer)
    own = "tokenizer" if getattr(tokenizer, "chat_template", None) else None
    name = template or source.prompt_template or guess_template(tokenizer) or own
    if name is None:
        raise UserError(
            f"Which prompt template '{source.path}' was trained with is not recorded.",
            "Name it with --prompt-template, for example --prompt-template vicuna.",
        )
    chosen = template_to_ask(name, tokenizer)
    processor = ImageProcessor.from_dict(source.image_processor) if source.image_processor else None
    return Assistant(
        model, tokenizer, processor, chosen, source.pad_image_to_square, source.path, source.format
    )


def check_vocabulary(source: Source, tokenizer: Any) -> None:
    """Raise UserError for an adapter's tokenizer with more tokens than the model's embeddings."""
    rows = source.llm_config.get("vocab_size")
    if source.tokenizer_dir != source.path and rows and len(tokenizer) > int(rows):
        raise UserError(
            f"The tokenizer in '{source.tokenizer_dir}' has {len(tokenizer)} tokens, "
            f"the model {rows} embeddings.",
            "The adapter was trained with more tokens and saved without its embeddings: save it "
            "again with save_embedding_layers=True.",
        )


def choose_device(device: str) -> str:
    """Return the device that `auto` means on this machine, or check the one asked for."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"Device '{device}' was asked for, but torch sees no GPU here.", "Use --device cpu."
        )
    try:
        torch.zeros(1, device=device).item()  # torch knows many names, of "meta" even tensors
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"There is no device '{device}'.", "Known: auto, cpu, cuda, cuda:1 and the like."
        ) from error
    return device


def choose_dtype(dtype: str, device: torch.device, source: Source) -> torch.dtype:
    """Return the dtype that `auto` means for a model on a device, or check the one asked for."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"Unknown dtype '{dtype}'.", f"Known: auto, {', '.join(DTYPES)}.")
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32  # half precision is slow and less exact on most CPUs
    kinds = {tensor.dtype for tensor in source.tensors.values()}
    return torch.bfloat16 if torch.bfloat16 in kinds else torch.float16
