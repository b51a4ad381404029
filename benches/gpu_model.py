#!/usr/bin/env python3
"""Models of a named shape with random weights, for machines that no real model of that size reaches.

The speed of decoding depends on the shape and the quantization, not on the weights' values; what such a model
says means nothing, so it serves for speed and memory and never for a test of behaviour.

    gpu_model.py vocabulary MODEL.gguf OUT.json.gz     takes the tokenizer out of a real model
    gpu_model.py make SHAPE VOCABULARY.json.gz OUT.gguf   F16; llama-quantize makes a K-quant of it

Needs numpy and the package `gguf`, which llama.cpp's source carries in gguf-py.
"""

import dataclasses
import gzip
import json
import pathlib
import sys

import gguf
import numpy as np


@dataclasses.dataclass
class Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_heads_kv: int
    n_vocab: int
    head_dim: int = 128


# As the published models' config.json have them.
SHAPES = {
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 128256, head_dim=64),
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128256),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128256),
}
NORMAL = 1  # llama.cpp's kind of token that is text
KEYS = ["tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "pre"]


def vocabulary(model, out):
    fields = gguf.GGUFReader(model).fields
    kept = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in KEYS}
    kept["chat_template"] = fields["tokenizer.chat_template"].contents()
    with gzip.open(out, "wt") as file:
        json.dump(kept, file)


def make(name, vocabulary_file, out):
    shape = SHAPES[name]
    with gzip.open(vocabulary_file, "rt") as file:
        words = json.load(file)
    n_more = shape.n_vocab - len(words["tokens"])

    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(f"{name}, random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(32768)
    writer.add_block_count(shape.n_layers)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_heads_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words["pre"])
    # Words, each with a space before it: a stream of tokens without text would say nothing of first tokens and pauses.
    writer.add_token_list([*words["tokens"], *(f"\u0120more{n}" for n in range(n_more))])
    writer.add_token_types([*words["token_type"], *[NORMAL] * n_more])
    writer.add_token_merges(words["merges"])
    writer.add_bos_token_id(words["bos_token_id"])
    writer.add_eos_token_id(words["eos_token_id"])
    writer.add_chat_template(words["chat_template"])

    random = np.random.default_rng(1)
    # Drawing every weight would take minutes; the same noise from another place in each tensor does as well.
    noise = (random.standard_normal(1 << 22, dtype=np.float32) * 0.02).astype(np.float16)

    def weights(name, rows, columns):
        writer.add_tensor(name, np.resize(noise[int(random.integers(1000)) :], rows * columns).reshape(rows, columns))

    def norm(name):
        writer.add_tensor(name, np.ones(shape.n_embd, np.float32))

    n_q, n_kv = shape.n_heads * shape.head_dim, shape.n_heads_kv * shape.head_dim
    weights("token_embd.weight", shape.n_vocab, shape.n_embd)
    norm("output_norm.weight")
    for layer in range(shape.n_layers):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        for tensor, rows, columns in [
            ("attn_q", n_q, shape.n_embd),
            ("attn_k", n_kv, shape.n_embd),
            ("attn_v", n_kv, shape.n_embd),
            ("attn_output", shape.n_embd, n_q),
            ("ffn_gate", shape.n_ff, shape.n_embd),
            ("ffn_up", shape.n_ff, shape.n_embd),
            ("ffn_down", shape.n_embd, shape.n_ff),
        ]:
            weights(f"blk.{layer}.{tensor}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    match sys.argv[1:]:
        case ["vocabulary", model, out]:
            vocabulary(model, out)
        case ["make", name, words, out] if name in SHAPES:
            make(name, pathlib.Path(words), out)
        case _:
            sys.exit(f"{__doc__}\nShapes: {', '.join(SHAPES)}")


if __name__ == "__main__":
    main()
