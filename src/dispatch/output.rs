//! PURE: text of one stream between the worker and the broker.
//!
//! The first text leaves at once; later text some `coalesce` after the last chunk, or when there
//! are `coalesce_bytes` of it. When the broker is slow the joins grow. What was sent as one chunk is remembered as a *cut*, so that the very
//! same chunks can be sent again after a power cut or to a requester that asks twice.

use std::time::Duration;

use tokio::time::Instant;

/// Chunks stay below the 8 KiB that small clients can read, JSON escapes (up to 6 bytes for one) included.
pub const CHUNK_TEXT_BYTES_MAX: usize = 1024;

/// Text of one stream, sent and unsent.
#[derive(Debug)]
pub struct Output {
    text: String,
    /// Bytes of `text` that may leave; what follows could be the begin of a call.
    ready_bytes: usize,
    /// Ends of the chunks sent so far, as byte offsets into `text`; rising, but for chunks without text.
    cuts: Vec<u32>,
    /// Since when unsent text has waited.
    waiting_since: Option<Instant>,
    /// When the last chunk left.
    left_at: Option<Instant>,
    coalesce: Duration,
    coalesce_bytes: usize,
    ended: bool,
}

impl Output {
    /// Nothing sent yet. A `coalesce` of zero sends each piece as it comes.
    pub fn new(coalesce: Duration, coalesce_bytes: usize) -> Self {
        Self {
            text: String::new(),
            ready_bytes: 0,
            cuts: Vec::new(),
            waiting_since: None,
            left_at: None,
            coalesce,
            coalesce_bytes,
            ended: false,
        }
    }

    /// New text from the worker.
    pub fn push(&mut self, text: &str, now: Instant) {
        self.keep(text);
        self.release(self.text.len(), now);
    }

    /// New text that may not leave yet.
    pub fn keep(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// All but what lies behind the first `bytes` of the text may leave.
    pub fn release(&mut self, bytes: usize, now: Instant) {
        if bytes > self.ready_bytes {
            self.ready_bytes = bytes;
            self.waiting_since.get_or_insert(now);
        }
    }

    /// Whether the next chunk is the rest of a text that is over.
    pub fn is_last(&self) -> bool {
        self.ended && self.sent_bytes() + self.chunk().len() == self.text.len()
    }

    /// No more text will come: what is left is due now.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// When the next chunk is to leave; `None` when nothing is unsent.
    pub fn due(&self) -> Option<Instant> {
        let since = self.waiting_since?;
        match self.left_at {
            // The worker keeps the pace, and may be early by half of it.
            Some(left_at) if !self.ended && self.unsent_bytes() < self.coalesce_bytes => {
                Some(since.max(left_at + self.coalesce / 2))
            }
            _ => Some(since),
        }
    }

    /// Time between two chunks, about.
    pub fn coalesce(&self) -> Duration {
        self.coalesce
    }

    /// The next chunk: unsent text, cut at a character. Call [`Self::sent`] once it is on its way.
    pub fn chunk(&self) -> &str {
        let start = self.sent_bytes();
        let end = floor_char_boundary(
            &self.text,
            self.ready_bytes.min(start + CHUNK_TEXT_BYTES_MAX),
        );
        &self.text[start..end]
    }

    /// Where [`Self::chunk`] ends in the text.
    pub fn chunk_end(&self) -> usize {
        self.sent_bytes() + self.chunk().len()
    }

    /// The chunk that [`Self::chunk`] gave has left.
    pub fn sent(&mut self, now: Instant) {
        self.left_at = Some(now);
        let end = self.sent_bytes() + self.chunk().len();
        self.cuts
            .push(u32::try_from(end).expect("texts are bounded far below 4 GiB"));
        if end == self.ready_bytes {
            self.waiting_since = None;
        }
    }

    /// A chunk without text has left: all that there is was sent before it.
    pub fn sent_empty(&mut self) {
        let end = self.sent_bytes();
        self.cuts
            .push(u32::try_from(end).expect("texts are bounded far below 4 GiB"));
    }

    /// Bytes handed to the broker's link.
    pub fn sent_bytes(&self) -> usize {
        self.cuts.last().map_or(0, |end| *end as usize)
    }

    /// Bytes that wait and may leave.
    pub fn unsent_bytes(&self) -> usize {
        self.ready_bytes - self.sent_bytes()
    }

    /// The whole text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Chunks sent so far.
    pub fn n_chunks(&self) -> u64 {
        self.cuts.len() as u64
    }

    /// Ends of the chunks sent so far, to be kept with the final.
    pub fn cuts(&self) -> &[u32] {
        &self.cuts
    }
}

/// Largest character boundary not above `at`.
pub fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut end = at.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOIN: Duration = Duration::from_millis(40);

    #[test]
    fn the_first_text_leaves_at_once_and_the_next_is_joined() {
        let start = Instant::now();
        let mut output = Output::new(JOIN, 512);
        output.push("One", start);
        assert_eq!(output.due(), Some(start));
        output.sent(start);
        output.push(" two", start + Duration::from_millis(3));
        output.push(" three", start + Duration::from_millis(5));
        assert_eq!(output.due(), Some(start + JOIN / 2));
        assert_eq!(output.chunk(), " two three");
    }

    #[test]
    fn text_that_comes_after_the_time_leaves_at_once() {
        let start = Instant::now();
        let mut output = Output::new(JOIN, 512);
        output.push("One", start);
        output.sent(start);
        output.push(" two", start + 2 * JOIN);
        assert_eq!(output.due(), Some(start + 2 * JOIN));
    }

    #[test]
    fn many_bytes_or_the_end_do_not_wait() {
        let start = Instant::now();
        let mut output = Output::new(JOIN, 8);
        output.push("x", start);
        output.sent(start);
        output.push("123456789", start);
        assert_eq!(output.due(), Some(start));
        output.sent(start);
        output.push("y", start);
        assert_eq!(output.due(), Some(start + JOIN / 2));
        output.end();
        assert_eq!(output.due(), Some(start));
    }

    proptest! {
        #[test]
        fn chunks_joined_are_the_text_and_each_is_small_and_whole(pieces in prop::collection::vec("\\PC{0,300}", 0..20)) {
            let now = Instant::now();
            let mut output = Output::new(JOIN, 512);
            let mut received = String::new();
            for (n, piece) in pieces.iter().enumerate() {
                output.push(piece, now);
                if n % 3 == 0 {
                    while output.due().is_some() {
                        prop_assert!(!output.chunk().is_empty() && output.chunk().len() <= CHUNK_TEXT_BYTES_MAX);
                        received.push_str(output.chunk());
                        output.sent(now);
                    }
                }
            }
            output.end();
            while output.due().is_some() {
                received.push_str(output.chunk());
                output.sent(now);
            }
            prop_assert_eq!(&received, &pieces.concat());
            let (text, cuts) = (output.text(), output.cuts());
            prop_assert_eq!(cuts.last().map_or(0, |end| *end as usize), text.len());
            prop_assert!(cuts.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
