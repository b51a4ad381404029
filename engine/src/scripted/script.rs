//! The answer and the hooks of one prompt.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use orinoco::frames::{BufferUse, Token};

use super::attempts::attempt;
use super::{EOG, USER};
use crate::model::{DecodeError, LoadError};

/// What one prompt asks of the scripted decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    answer: Answer,
    n_tokens: Option<usize>,
    pub(super) step: Duration,
    abort_at: Option<usize>,
    crash_at: Option<usize>,
    resumed: bool,
    hang_at: Option<usize>,
    fail_at: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Repeat(Vec<u8>),
    Count,
}

impl Script {
    /// Reads the prompt's tokens. `resumed`: another worker made the head of the answer.
    pub(super) fn of(prompt: &[Token], resumed: bool) -> Self {
        let user = prompt.iter().rposition(|token| *token == USER);
        let bytes = prompt[user.map_or(0, |at| at + 1)..]
            .iter()
            .filter_map(|token| u8::try_from(*token).ok());
        let text = String::from_utf8_lossy(&Vec::from_iter(bytes)).into_owned();
        Self {
            resumed,
            ..Self::parse(&text)
        }
    }

    fn parse(text: &str) -> Self {
        let mut script = Self {
            answer: Answer::Count,
            n_tokens: None,
            step: Duration::ZERO,
            abort_at: None,
            crash_at: None,
            resumed: false,
            hang_at: None,
            fail_at: None,
        };
        let mut echo = Vec::new();
        let mut counts = false;
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            if word == "!try" {
                let what = words.next().unwrap_or_default();
                let target = words.next().unwrap_or_default();
                let text = format!("{what}: {}", attempt(what, target));
                script.n_tokens = Some(text.len());
                script.answer = Answer::Repeat(text.into_bytes());
                return script;
            }
            // The number after a hook; `at` may stand before it.
            let mut number = || {
                words.next_if(|word| *word == "at");
                let n = words.peek().and_then(|word| word.parse::<usize>().ok());
                if n.is_some() {
                    words.next();
                }
                n
            };
            match word {
                "!tokens" => script.n_tokens = number(),
                "!step" => {
                    script.step = Duration::from_millis(number().unwrap_or(0) as u64);
                }
                "!abort" => script.abort_at = number(),
                "!crash" => script.crash_at = number(),
                "!hang" => script.hang_at = number(),
                "!fail" => script.fail_at = number(),
                "!count" => counts = true,
                "!utf8" => echo = vec!["é€𝄞"],
                word => echo.push(word),
            }
        }
        if !counts {
            let mut text = if echo.is_empty() {
                "ok".to_owned()
            } else {
                echo.join(" ")
            };
            text.push(' ');
            script.answer = Answer::Repeat(text.into_bytes());
        }
        script
    }

    /// Token number `n_made` (from 0) of the answer.
    pub(super) fn make(&self, n_made: usize) -> Result<Token, DecodeError> {
        let now = Some(n_made + 1);
        if self.abort_at == now || (self.crash_at == now && !self.resumed) {
            std::process::abort();
        }
        if self.hang_at == now {
            loop {
                std::thread::park();
            }
        }
        if self.fail_at == now {
            return Err(DecodeError::Failed(-3));
        }
        if self.n_tokens == Some(n_made) {
            return Ok(EOG);
        }
        Ok(Token::from(match &self.answer {
            Answer::Repeat(text) => text[n_made % text.len()],
            Answer::Count => count_byte(n_made),
        }))
    }
}

/// Byte `i` of `0 1 2 3 …`.
fn count_byte(i: usize) -> u8 {
    let (mut rest, mut digits, mut first, mut many) = (i, 1, 0, 10);
    while rest >= many * (digits + 1) {
        rest -= many * (digits + 1);
        first += many;
        digits += 1;
        many = 9 * 10_usize.pow(digits as u32 - 1);
    }
    let number = (first + rest / (digits + 1)).to_string();
    *number.as_bytes().get(rest % (digits + 1)).unwrap_or(&b' ')
}

/// The text of a file that begins with `!`; of any other nothing, and nothing but its first byte is read:
/// real models are large.
fn hooks(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    (&mut file).take(1).read_to_end(&mut bytes)?;
    if bytes == *b"!" {
        file.read_to_end(&mut bytes)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(String::new())
}

/// Does what a file of hooks says.
pub(super) fn load(path: &Path, progress: &mut dyn FnMut(f32) -> bool) -> Result<(), LoadError> {
    let failed = |what: String| LoadError(format!("load {}: {what}", path.display()));
    let text = hooks(path).map_err(|error| failed(error.to_string()))?;
    for line in text.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("!load-ms", ms) => {
                let ms: u64 = ms.trim().parse().unwrap_or(0);
                for passed in (0..ms).step_by(20) {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "being slow is what it is asked for"
                    )]
                    std::thread::sleep(Duration::from_millis(20.min(ms - passed)));
                    if !progress(passed as f32 / ms as f32) {
                        return Err(failed("the supervisor went away during the load".into()));
                    }
                }
            }
            ("!load-fail", message) => return Err(failed(message.to_owned())),
            ("!load-abort", _) => std::process::abort(),
            _ => {}
        }
    }
    Ok(())
}

/// What a file that begins with `!` says for planning.
#[derive(Debug, Default)]
pub(super) struct PlanHooks {
    pub(super) weights_bytes: u64,
    /// They are mapped from the file.
    pub(super) is_mapped: bool,
}

impl PlanHooks {
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let failed = |what: String| LoadError(format!("load {}: {what}", path.display()));
        let text = hooks(path).map_err(|error| failed(error.to_string()))?;
        let mut hooks = Self::default();
        for line in text.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("!weights-bytes", n) => hooks.weights_bytes = n.trim().parse().unwrap_or(0),
                ("!mapped", _) => hooks.is_mapped = true,
                ("!plan-fail", message) => return Err(failed(message.to_owned())),
                ("!plan-abort", _) => std::process::abort(),
                _ => {}
            }
        }
        Ok(hooks)
    }
}

impl PlanHooks {
    /// What a worker says that it holds; nothing for a file without hooks.
    pub(super) fn loaded(&self) -> Vec<BufferUse> {
        if self.weights_bytes == 0 {
            return Vec::new();
        }
        let name = if self.is_mapped { "CPU_Mapped" } else { "CPU" };
        vec![BufferUse {
            buffer: name.to_owned(),
            host: true,
            weights_bytes: self.weights_bytes,
            kv_bytes: 0,
            compute_bytes: 0,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prompt: &str, n: usize) -> String {
        let script = Script::parse(prompt);
        let bytes = (0..n).map(|i| script.make(i).unwrap() as u8);
        String::from_utf8(Vec::from_iter(bytes)).unwrap()
    }

    #[test]
    fn the_prompt_is_echoed_without_its_hooks() {
        assert_eq!(text("hello there", 14), "hello there he");
        assert_eq!(text("hello !tokens 99 there !step 3", 14), "hello there he");
        assert_eq!(text("!tokens 9", 4), "ok o");
    }

    #[test]
    fn counting_counts() {
        let wanted = Vec::from_iter((0..1200).map(|n| n.to_string())).join(" ");
        assert_eq!(text("!count", wanted.len()), wanted);
    }

    #[test]
    fn hooks_read_their_numbers() {
        let script =
            Script::parse("!abort at 7 !hang at 8 !crash at 9 !fail at 3 !step 5 !tokens 4");
        assert_eq!(script.abort_at, Some(7));
        assert_eq!(script.hang_at, Some(8));
        assert_eq!(script.crash_at, Some(9));
        assert_eq!(script.step, Duration::from_millis(5));
        assert_eq!(script.make(2), Err(DecodeError::Failed(-3)));
        assert_eq!(script.make(4), Ok(EOG));
    }
}
