//! An owned `llama_model` and its vocabulary.

#![allow(
    unsafe_code,
    reason = "llama-cpp-2 hides its raw model, and the context needs one"
)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;
use orinoco::frames::{Backend, LoadSpec, Switch, Task, Token};
use orinoco::models::gguf;

use super::judged::Judged;
use super::{device, log};
use crate::model::{LoadError, TemplateSource};

/// A loaded model. Freed on drop, so everything made from it must borrow it.
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocab: NonNull<sys::llama_vocab>,
    file: Judged,
}

/// Chat templates beyond this are refused before anything parses them.
const TEMPLATE_BYTES_MAX: usize = 256 << 10;

impl Model {
    /// Loads the file of `spec`. `progress` returns `false` to stop.
    pub fn load(spec: &LoadSpec, progress: &mut dyn FnMut(f32) -> bool) -> Result<Self, LoadError> {
        Self::open(spec, Tensors::Loaded, progress)
    }

    /// Header and vocabulary only, with tensors that have a size and no memory. Decoding on a context of
    /// such a model ends the process: see [`super::plan`].
    pub(super) fn outline(spec: &LoadSpec) -> Result<Self, LoadError> {
        Self::open(spec, Tensors::Outlined, &mut |_| true)
    }

    fn open(
        spec: &LoadSpec,
        tensors: Tensors,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Self, LoadError> {
        let file = Judged::open(&spec.path)?;
        let path = file.path_of_descriptor();
        // SAFETY: returns a plain struct.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = spec.n_gpu_layers;
        // AUTO stays AUTO: llama.cpp then reads instead of mapping on integrated GPUs. The setters of
        // llama-cpp-2 0.1.160 turn AUTO into MMAP even when asked for "no mlock".
        params.load_mode = load_mode(spec.mmap);
        if tensors == Tensors::Outlined {
            params.no_alloc = true;
            // Nothing is read; llama.cpp aborts when it is to map for nothing.
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        }
        let mut no_devices = [std::ptr::null_mut()];
        if spec.backend == Backend::Cpu {
            params.n_gpu_layers = 0;
            params.devices = no_devices.as_mut_ptr();
        }
        let mut progress = Progress {
            report: progress,
            stopped: false,
        };
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = (&raw mut progress).cast::<c_void>();
        // SAFETY: the path is NUL-terminated; `params`, `no_devices` and `progress` outlive the call,
        // and llama.cpp keeps none of them after it.
        let raw = unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) };
        let Some(raw) = NonNull::new(raw) else {
            let what = if progress.stopped {
                "the supervisor went away during the load".to_owned()
            } else {
                file.with_its_name(&log::take().reason())
            };
            return Err(LoadError(format!("load {}: {what}", spec.path.display())));
        };
        // SAFETY: `raw` is a live model; its vocabulary lives as long as it does.
        let vocab = unsafe { sys::llama_model_get_vocab(raw.as_ptr()) };
        let vocab = NonNull::new(vocab.cast_mut()).expect("every loaded model has a vocabulary");
        let model = Self { raw, vocab, file };
        model.file.check_unchanged()?;
        if tensors == Tensors::Loaded && !maps_file(spec) {
            model.file.drop_from_page_cache();
        }
        model.check_kind(&spec.path, spec.task)?;
        Ok(model)
    }

    /// Plain decoders make text; what makes one vector of a text says so in its header.
    fn check_kind(&self, path: &Path, task: Task) -> Result<(), LoadError> {
        let arch = self.arch();
        let is_encoder = gguf::limits::ENCODERS.contains(&arch.as_str());
        match task {
            Task::Generate if is_encoder => {
                return Err(LoadError(format!(
                    "load {}: architecture {arch} makes vectors and no text; embeddings.model is the place for it",
                    path.display()
                )));
            }
            Task::Embed if self.meta(&format!("{arch}.pooling_type")).is_none() => {
                return Err(LoadError(format!(
                    "load {}: its header has no {arch}.pooling_type, so it makes no vector of a text; an embedding model is needed",
                    path.display()
                )));
            }
            _ => {}
        }
        // SAFETY: the vocabulary is live; these only read.
        let (kind, bos, sep) = unsafe {
            let vocab = self.vocab();
            (
                sys::llama_vocab_type(vocab),
                sys::llama_vocab_bos(vocab),
                sys::llama_vocab_sep(vocab),
            )
        };
        if kind == sys::LLAMA_VOCAB_TYPE_WPM && (bos < 0 || sep < 0) {
            // llama.cpp ends the process when it tokenizes with such a vocabulary.
            return Err(LoadError(format!(
                "load {}: a WordPiece vocabulary without the tokens for begin and end of a text",
                path.display()
            )));
        }
        // SAFETY: the model is live; these only read.
        let (encoder, decoder, diffusion) = unsafe {
            let raw = self.raw();
            (
                sys::llama_model_has_encoder(raw),
                sys::llama_model_has_decoder(raw),
                sys::llama_model_is_diffusion(raw),
            )
        };
        if encoder || !decoder || diffusion {
            return Err(LoadError(format!(
                "load {}: architecture {} does not generate text token by token; a decoder-only model is needed",
                path.display(),
                self.arch()
            )));
        }
        if self.n_vocab() == 0 {
            return Err(LoadError(format!(
                "load {}: the file has no vocabulary",
                path.display()
            )));
        }
        Ok(())
    }

    /// What it was loaded from.
    pub(super) fn file(&self) -> &Judged {
        &self.file
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        self.vocab.as_ptr()
    }

    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> u32 {
        // SAFETY: the vocabulary is live; this only reads.
        unsafe { sys::llama_vocab_n_tokens(self.vocab()) }.max(0) as u32
    }

    /// Context the model was trained with.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: the model is live; this only reads.
        unsafe { sys::llama_model_n_ctx_train(self.raw()) }.max(0) as u32
    }

    /// Layers, the output layer counted.
    pub fn n_layers(&self) -> u32 {
        // SAFETY: the model is live; this only reads.
        unsafe { sys::llama_model_n_layer(self.raw()) }.max(0) as u32 + 1
    }

    /// Width of the sliding window, 0 if there is none.
    pub fn n_swa(&self) -> u32 {
        // SAFETY: the model is live; this only reads.
        unsafe { sys::llama_model_n_swa(self.raw()) }.max(0) as u32
    }

    /// Whether part of the memory is a state instead of cells, which sequences cannot share.
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: the model is live; these only read.
        unsafe {
            sys::llama_model_is_recurrent(self.raw()) || sys::llama_model_is_hybrid(self.raw())
        }
    }

    /// Parameters.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model is live; this only reads.
        unsafe { sys::llama_model_n_params(self.raw()) }
    }

    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> u64 {
        // SAFETY: the model is live; this only reads.
        unsafe { sys::llama_model_size(self.raw()) }
    }

    /// llama.cpp's line about the model, e.g. `llama 135M Q4_1`.
    pub fn description(&self) -> String {
        let mut buffer = [0_u8; 256];
        // SAFETY: writes at most `buffer.len()` bytes with a NUL at the end.
        unsafe {
            sys::llama_model_desc(
                self.raw(),
                buffer.as_mut_ptr().cast::<c_char>(),
                buffer.len(),
            )
        };
        text_until_nul(&buffer)
    }

    /// `general.architecture`.
    pub fn arch(&self) -> String {
        let arch = self.meta("general.architecture");
        arch.unwrap_or_else(|| "unknown".to_owned())
    }

    /// A value of the header as text, at most 127 bytes of it.
    fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = [0_u8; 128];
        // SAFETY: the key is NUL-terminated; at most `buffer.len()` bytes are written, NUL included.
        let length = unsafe {
            sys::llama_model_meta_val_str(
                self.raw(),
                key.as_ptr(),
                buffer.as_mut_ptr().cast::<c_char>(),
                buffer.len(),
            )
        };
        (length >= 0).then(|| text_until_nul(&buffer))
    }

    /// The template of this name; the main one without.
    fn template_text(&self, name: Option<&CStr>) -> Option<String> {
        let name = name.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the model is live, `name` NULL or a C string; the result is NULL or a C string that lives as
        // long as the model does.
        let source = unsafe {
            let raw = sys::llama_model_chat_template(self.raw(), name);
            (!raw.is_null()).then(|| CStr::from_ptr(raw))
        }?;
        let length = source.to_bytes().len();
        if length > TEMPLATE_BYTES_MAX {
            tracing::warn!(
                length,
                limit = TEMPLATE_BYTES_MAX,
                "chat template of the file is too large and ignored"
            );
            return None;
        }
        Some(source.to_string_lossy().into_owned())
    }

    /// The template and the texts around it.
    pub fn template(&self) -> TemplateSource {
        // SAFETY: the vocabulary is live; these only read.
        let (bos, eos, add_bos) = unsafe {
            (
                sys::llama_vocab_bos(self.vocab()),
                sys::llama_vocab_eos(self.vocab()),
                sys::llama_vocab_get_add_bos(self.vocab()),
            )
        };
        TemplateSource {
            source: self.template_text(None),
            for_tools: self.template_text(Some(c"tool_use")),
            bos: self.token_text(bos),
            eos: self.token_text(eos),
            add_bos,
        }
    }

    /// The text of a control token, empty when there is no such token.
    fn token_text(&self, token: Token) -> String {
        if token < 0 || token as u32 >= self.n_vocab() {
            return String::new();
        }
        // SAFETY: the token is in range; the result lives as long as the vocabulary.
        let text = unsafe {
            let raw = sys::llama_vocab_get_text(self.vocab(), token);
            (!raw.is_null()).then(|| CStr::from_ptr(raw))
        };
        text.map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// See [`crate::model::Decoder::tokenize`].
    pub fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, String> {
        let length = i32::try_from(text.len())
            .map_err(|_| format!("the text has {} bytes, too many to tokenize", text.len()))?;
        // A token stands for at least one byte, except the few special ones around the text.
        let mut ids: Vec<Token> = vec![0; text.len() + 8];
        let call = |ids: &mut Vec<Token>| {
            // SAFETY: both buffers are passed with their lengths; the vocabulary is live.
            unsafe {
                sys::llama_tokenize(
                    self.vocab(),
                    text.as_ptr().cast::<c_char>(),
                    length,
                    ids.as_mut_ptr(),
                    i32::try_from(ids.len()).unwrap_or(i32::MAX),
                    add_special,
                    parse_special,
                )
            }
        };
        let mut n = call(&mut ids);
        if n < 0 && n != i32::MIN {
            ids.resize(n.unsigned_abs() as usize, 0);
            n = call(&mut ids);
        }
        let n = usize::try_from(n)
            .map_err(|_| format!("llama.cpp could not tokenize {} bytes", text.len()))?;
        ids.truncate(n);
        Ok(ids)
    }

    /// See [`crate::model::Decoder::piece`].
    pub fn piece(&self, token: Token, bytes: &mut Vec<u8>) {
        if token < 0 || token as u32 >= self.n_vocab() {
            return;
        }
        let start = bytes.len();
        let mut room = 32;
        loop {
            bytes.resize(start + room, 0);
            // SAFETY: writes at most `room` bytes at `start`, where as many were just made.
            let n = unsafe {
                sys::llama_token_to_piece(
                    self.vocab(),
                    token,
                    bytes[start..].as_mut_ptr().cast::<c_char>(),
                    room as i32,
                    0,
                    false,
                )
            };
            if n >= 0 {
                bytes.truncate(start + n as usize);
                return;
            }
            room = n.unsigned_abs() as usize;
        }
    }

    /// See [`crate::model::Decoder::control`].
    pub fn control(&self, token: Token) -> Option<String> {
        if token < 0 || token as u32 >= self.n_vocab() {
            return None;
        }
        // SAFETY: the token is in range and the vocabulary is live.
        let attributes = unsafe { sys::llama_vocab_get_attr(self.vocab(), token) };
        // What llama_tokenize passes over unless it parses special tokens.
        let special = sys::LLAMA_TOKEN_ATTR_CONTROL | sys::LLAMA_TOKEN_ATTR_UNKNOWN;
        (attributes & special != 0).then(|| self.token_text(token))
    }

    /// Whether `token` ends an answer.
    pub fn is_eog(&self, token: Token) -> bool {
        if token < 0 || token as u32 >= self.n_vocab() {
            return false;
        }
        // SAFETY: the token is in range and the vocabulary is live.
        unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: made by llama_model_load_from_file, freed once; every context borrows the model.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

/// What stands behind a model's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tensors {
    /// Their bytes.
    Loaded,
    /// Nothing.
    Outlined,
}

/// Whether weights that stay on the host are mapped from the file instead of copied.
pub(super) fn maps_file(spec: &LoadSpec) -> bool {
    match spec.mmap {
        Switch::On => true,
        Switch::Off => false,
        Switch::Auto => device::can_map(spec.backend),
    }
}

fn load_mode(mmap: Switch) -> sys::llama_load_mode {
    match mmap {
        Switch::Auto => sys::LLAMA_LOAD_MODE_AUTO,
        Switch::On => sys::LLAMA_LOAD_MODE_MMAP,
        Switch::Off => sys::LLAMA_LOAD_MODE_NONE,
    }
}

struct Progress<'a> {
    report: &'a mut dyn FnMut(f32) -> bool,
    stopped: bool,
}

unsafe extern "C" fn on_progress(fraction: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `user_data` is the `Progress` that outlives the load; llama.cpp calls from the loading
    // thread, which holds no other reference to it.
    let progress = unsafe { &mut *user_data.cast::<Progress<'_>>() };
    let go_on = (progress.report)(fraction);
    progress.stopped |= !go_on;
    go_on
}

fn text_until_nul(buffer: &[u8]) -> String {
    let end = buffer
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_never_becomes_mmap() {
        assert_eq!(load_mode(Switch::Auto), sys::LLAMA_LOAD_MODE_AUTO);
        assert_eq!(load_mode(Switch::Off), sys::LLAMA_LOAD_MODE_NONE);
    }
}
