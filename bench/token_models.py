"""Small language models of tokens, trained from nothing, for Table 2 of Delétang et al. 2023.

Text -> a BPE tokenizer (tokenizers) -> a Llama in PyTorch (transformers), trained on a fixed amount
of text -> the exact engine's model file (lmzip models import).  Every vocabulary sees the same
bytes in the same order; the symbol "bytes" is a vocabulary without merges.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from lmzip.import_model import import_checkpoint
from lmzip.llama_model import serialize
from lmzip.output import AtomicFile
from lmzip.progress import Progress

BYTES = 257  # the vocabulary without merges: 256 bytes and the token before a text
START = "<|endoftext|>"
ROW = 2048  # bytes of text that are predicted together
BATCH = 4
RATE = 3e-3
TOKENIZER_TEXT = 10_000_000


@dataclass(frozen=True)
class Size:
    name: str
    width: int
    layers: int


SIZES = (Size("64 wide", 64, 2), Size("128 wide", 128, 2))


def bpe(text: bytes, vocabulary: int) -> Tokenizer:
    """Byte-level BPE with `vocabulary` tokens, the start among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text[:TOKENIZER_TEXT].decode("utf-8", "replace")], trainer)
    return tokenizer


def train(
    text: bytes, size: Size, vocabulary: int, total: int, folder: Path, name: str
) -> dict[str, str]:
    """Train once on the first `total` bytes of `text`; write folder/exact.safetensors.

    AdamW, its rate falling with half a cosine; -> columns for a table.
    """
    torch.manual_seed(0)
    tokenizer = bpe(text, vocabulary)
    vocabulary = tokenizer.get_vocab_size()
    start = tokenizer.token_to_id(START)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            intermediate_size=4 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.width // 32,
            num_key_value_heads=size.width // 32,
            max_position_embeddings=ROW + 1,
            tie_word_embeddings=True,
            initializer_range=size.width**-0.5 / 2,
            bos_token_id=start,
            eos_token_id=start,
        )
    )
    rows = [text[i : i + ROW].decode("utf-8", "replace") for i in range(0, total - ROW + 1, ROW)]
    ids = [[start, *e.ids] for e in tokenizer.encode_batch(rows, add_special_tokens=False)]
    steps = len(ids) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    order = np.random.default_rng(0).permutation(len(ids))
    started, bits, counted = time.process_time(), 0.0, 0
    with Progress(f"training {name}", total, wanted=True) as line:
        for step in range(steps):
            share = step / steps
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, step / 50 + 0.02) * (1 + math.cos(math.pi * share)) / 2
            batch = [ids[i] for i in order[step * BATCH : (step + 1) * BATCH]]
            loss, symbols = _loss(network, batch)
            (loss / symbols).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if share > 0.9:
                bits += loss.item() / math.log(2)
                counted += BATCH * ROW
            line.update((step + 1) * BATCH * ROW, 0, 0)
    seconds = time.process_time() - started
    _write(network, tokenizer, folder, name)
    return {
        "vocabulary": f"{vocabulary}",
        "bytes_per_token": f"{len(ids) * ROW / sum(len(row) - 1 for row in ids):.2f}",
        "layer_parameters": f"{sum(p.numel() for p in network.model.layers.parameters())}",
        "trained_bytes": f"{steps * BATCH * ROW}",
        "train_cpu_seconds": f"{seconds:.0f}",
        "train_bpb": f"{bits / max(counted, 1):.3f}",
    }


def _loss(network: LlamaForCausalLM, batch: list[list[int]]) -> tuple[torch.Tensor, int]:
    """Nats of all symbols of the rows, and how many there are; shorter rows are filled up."""
    longest = max(map(len, batch))
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    known = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        known[row, : len(ids)] = True
    hidden = network.model(tokens[:, :-1]).last_hidden_state  # what is filled up comes last
    logits = network.lm_head(hidden[known[:, 1:]])
    goal = tokens[:, 1:][known[:, 1:]]
    return F.cross_entropy(logits, goal, reduction="sum"), len(goal)


def _write(network: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, name: str) -> None:
    """By the way of any other checkpoint."""
    network.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    model = import_checkpoint(folder)
    about = model.about | {"name": name, "licence": "Apache-2.0"}
    with AtomicFile(folder / "exact.safetensors", overwrite=True) as file:
        file.write(serialize(model.architecture, model.tensors, about))
