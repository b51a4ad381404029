//! How much of everything a GGUF header may hold, and the names of its types.
//!
//! The limits are several times what real models have (262,144 tokens, a few hundred tensors and about
//! forty keys in 2026), and small enough that the worst file costs milliseconds and a few MiB.

use std::ops::RangeInclusive;

/// Longest header, up to the padding before the tensors.
pub const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Most key-value pairs.
pub const KEYS_MAX: u64 = 4096;
/// Most tensors.
pub const TENSORS_MAX: u64 = 65_536;
/// Longest key.
pub const KEY_BYTES_MAX: u64 = 256;
/// Longest string value.
pub const STRING_BYTES_MAX: u64 = 1 << 20;
/// Longest string value that is kept.
pub const NAME_BYTES_MAX: u64 = 4096;
/// Longest chat template.
pub const TEMPLATE_BYTES_MAX: u64 = 256 << 10;
/// Longest token.
pub const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// Longest tensor name: ggml has 64 bytes with the final NUL.
pub const TENSOR_NAME_BYTES_MAX: u64 = 63;
/// Longest array.
pub const ARRAY_ELEMENTS_MAX: u64 = 1 << 20;
/// Most transformer blocks: the size of llama.cpp's fixed tables.
pub const BLOCKS_MAX: u64 = 512;
/// Largest context length believed.
pub const CONTEXT_TOKENS_MAX: u64 = 1 << 28;
/// Architectures whose files may be opened: decoders of text that are in wide use. Each has code of its own in
/// llama.cpp's loader, so that what nobody asks for is attack surface alone (`plamo2` read outside its
/// tables, llama.cpp#25969); others do not answer prompts: encoders, projectors, drafts, diffusion, speech.
pub const ARCHITECTURES: &[&str] = &[
    "afmoe",
    "apertus",
    "arcee",
    "baichuan",
    "bailingmoe",
    "bailingmoe2",
    "bitnet",
    "bloom",
    "chatglm",
    "codeshell",
    "cohere2",
    "cohere2moe",
    "command-r",
    "dbrx",
    "deci",
    "deepseek",
    "deepseek2",
    "dots1",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone",
    "exaone4",
    "exaone-moe",
    "falcon",
    "falcon-h1",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3n",
    "gemma4",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "gpt2",
    "gptj",
    "gptneox",
    "granite",
    "granitehybrid",
    "granitemoe",
    "grovemoe",
    "hunyuan-dense",
    "hunyuan-moe",
    "internlm2",
    "jamba",
    "kimi-linear",
    "lfm2",
    "lfm2moe",
    "llama",
    "llama4",
    "mamba",
    "mamba2",
    "mimo2",
    "minicpm",
    "minicpm3",
    "minimax-m2",
    "mistral3",
    "mistral4",
    "mpt",
    "nemotron",
    "nemotron_h",
    "nemotron_h_moe",
    "olmo",
    "olmo2",
    "olmoe",
    "openelm",
    "orion",
    "phi2",
    "phi3",
    "phimoe",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen35",
    "qwen35moe",
    "qwen3moe",
    "qwen3next",
    "qwen3vl",
    "qwen3vlmoe",
    "refact",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "stablelm",
    "starcoder",
    "starcoder2",
    "step35",
    "xverse",
];
/// Architectures that make one vector of a text, and no text: MiniLM, E5, BGE, GTE and Nomic are these.
pub const ENCODERS: &[&str] = &["bert", "modern-bert", "nomic-bert"];
/// Values of `tokenizer.ggml.model`: WordPiece, SentencePiece and byte pairs. The others have code of their own
/// in llama.cpp, and none of the architectures above needs it.
pub const TOKENIZERS: &[&str] = &["bert", "gemma4", "gpt2", "llama"];
/// Alignment of tensors, bytes; a power of two.
pub const ALIGNMENT: RangeInclusive<u64> = 8..=4096;

/// Name, elements in a block and bytes of a block, by ggml's type number; `None` for removed and unknown
/// types. As in ggml of llama-cpp-sys-2 0.1.161, `enum ggml_type` and the block structs.
pub(super) fn tensor_type(number: u32) -> Option<(&'static str, u64, u64)> {
    Some(match number {
        0 => ("f32", 1, 4),
        1 => ("f16", 1, 2),
        2 => ("q4_0", 32, 18),
        3 => ("q4_1", 32, 20),
        6 => ("q5_0", 32, 22),
        7 => ("q5_1", 32, 24),
        8 => ("q8_0", 32, 34),
        9 => ("q8_1", 32, 36),
        10 => ("q2_K", 256, 84),
        11 => ("q3_K", 256, 110),
        12 => ("q4_K", 256, 144),
        13 => ("q5_K", 256, 176),
        14 => ("q6_K", 256, 210),
        15 => ("q8_K", 256, 292),
        16 => ("iq2_xxs", 256, 66),
        17 => ("iq2_xs", 256, 74),
        18 => ("iq3_xxs", 256, 98),
        19 => ("iq1_s", 256, 50),
        20 => ("iq4_nl", 32, 18),
        21 => ("iq3_s", 256, 110),
        22 => ("iq2_s", 256, 82),
        23 => ("iq4_xs", 256, 136),
        24 => ("i8", 1, 1),
        25 => ("i16", 1, 2),
        26 => ("i32", 1, 4),
        27 => ("i64", 1, 8),
        28 => ("f64", 1, 8),
        29 => ("iq1_m", 256, 56),
        30 => ("bf16", 1, 2),
        34 => ("tq1_0", 256, 54),
        35 => ("tq2_0", 256, 66),
        39 => ("mxfp4", 32, 17),
        40 => ("nvfp4", 64, 36),
        41 => ("q1_0", 128, 18),
        42 => ("q2_0", 64, 18),
        _ => return None,
    })
}

/// Name of `general.file_type`, as in `enum llama_ftype`.
pub(super) fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        39 => "NVFP4",
        40 => "Q1_0",
        41 => "Q2_0",
        _ => return None,
    })
}
