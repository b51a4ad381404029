//! The daemon that is measured, with a broker and a place of its own, and a client of it that follows the
//! contract. What is asked, and what becomes of the times, is said by who drives it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::run::{LOAD_LIMIT, STEP_LIMIT};
use crate::config::Config;
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use crate::process::{terminate, tie};
use crate::receive::{Finished, Heard, Receiver};
use crate::runtime_file;

/// The user that asks.
const USER: &str = "local";

/// A directory of our own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!(
            "orinoco-bench-{}-{:08x}",
            std::process::id(),
            getrandom::u32().unwrap_or(0)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn state_dir(&self) -> PathBuf {
        self.0.join("state")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a few files in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon with the same settings as ours, but a place and a broker of its own.
pub(super) struct Daemon {
    child: Child,
    scratch: Scratch,
}

impl Daemon {
    /// Starts it; its model loads meanwhile.
    pub(super) fn start(config: &Config) -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        let settings = scratch.path().join("config.toml");
        std::fs::write(&settings, config.to_toml(false))
            .context("failed to write the settings of the daemon")?;
        let this = std::env::current_exe().context("failed to find this program's own file")?;
        let mut command = Command::new(this);
        command.arg("run").arg("--config").arg(&settings);
        let broker = scratch.path().join("broker");
        for (key, value) in [
            ("paths.state_dir", scratch.state_dir().display().to_string()),
            (
                "paths.models_dir",
                config.paths.models_dir.display().to_string(),
            ),
            ("broker.mode", "child".into()),
            ("broker.listen", "127.0.0.1".into()),
            ("broker.port", "18830".into()),
            ("broker.port_search", "true".into()),
            ("broker.storage_dir", broker.display().to_string()),
            ("log.level", "warn".into()),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        tie(command.as_std_mut());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("failed to start a daemon to measure")?;
        Ok(Self { child, scratch })
    }

    /// A client of it, as soon as it answers.
    ///
    /// # Errors
    /// It ended, or does not serve in time.
    pub(super) async fn client(&mut self) -> anyhow::Result<Client> {
        let state_dir = self.scratch.state_dir();
        let give_up = Instant::now() + Duration::from_secs(30);
        let runtime = loop {
            if let Some(runtime) = runtime_file::read(&state_dir)? {
                break runtime;
            }
            let ended = self.child.try_wait();
            if let Some(status) = ended.context("failed to look after the daemon")? {
                bail!("the daemon to measure ended with {status}; its log lines are above");
            }
            if Instant::now() > give_up {
                bail!("the daemon to measure did not start in time");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut link_config = LinkConfig::new(runtime.host, runtime.port, "orinoco-bench");
        link_config.clean_start = true;
        let (root, node) = (runtime.root, runtime.node);
        link_config.subscriptions = vec![
            format!("{root}/v1/resp/{USER}/#"),
            format!("{root}/v1/{node}/state"),
        ];
        let (link, inbox) = link::spawn(link_config);
        let mut client = Client {
            link,
            inbox,
            root,
            node,
            next_id: 0,
        };
        timeout(LOAD_LIMIT, client.until_serving())
            .await
            .context("the model did not load in time")??;
        Ok(client)
    }

    pub(super) async fn stop(mut self) {
        terminate(&self.child);
        let ended = timeout(Duration::from_secs(15), self.child.wait()).await;
        if ended.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

pub(super) struct Client {
    link: Link,
    inbox: Inbox,
    root: String,
    node: String,
    next_id: u64,
}

/// What one or more streams side by side showed.
pub(super) struct Measured {
    /// All streams together, while all were decoding.
    pub(super) tok_s: Option<f64>,
    /// Between the texts of the first stream.
    pub(super) gaps: Vec<Duration>,
    /// From publishing to the first text, of the first stream.
    pub(super) ttft: Duration,
    /// The worker's prefill of the first stream.
    pub(super) prefill: Duration,
}

/// One stream while it runs.
pub(super) struct Stream {
    topic: String,
    receiver: Receiver,
    /// When text came, and how many bytes there were then.
    heard: Vec<(Instant, usize)>,
    ended: Option<Instant>,
}

impl Stream {
    /// When the first of its text came, and when it ended.
    pub(super) fn times(&self) -> Option<(Instant, Instant)> {
        Some((self.heard.first()?.0, self.ended?))
    }

    /// What its final says.
    ///
    /// # Errors
    /// It has none, or ended with an error.
    pub(super) fn finished(&self) -> anyhow::Result<&Finished> {
        let end = self.receiver.end().context("a stream has not ended")?;
        let finished = end.outcome.as_ref();
        finished.map_err(|error| anyhow::anyhow!("a stream failed: {}", error.message))
    }
}

impl Client {
    async fn until_serving(&mut self) -> anyhow::Result<()> {
        use crate::wire::report::{Mode, State};
        loop {
            let Some(event) = self.inbox.recv().await else {
                bail!("the link ended")
            };
            let Inbound::Message(message) = event else {
                continue;
            };
            self.link.try_ack(message.ack)?;
            let Ok(state) = serde_json::from_slice::<State>(&message.payload) else {
                continue;
            };
            match state.mode {
                Mode::Serving => return Ok(()),
                Mode::NoModel => bail!("no model serves: {}", state.reasons.join("; ")),
                _ => {}
            }
        }
    }

    /// Runs streams of `n_gen` greedy tokens side by side, each with a prompt of its own.
    pub(super) async fn streams(
        &mut self,
        n_streams: u32,
        n_gen: u32,
        prompt: &str,
    ) -> anyhow::Result<Measured> {
        // Numbered at its beginning, so that no prefix of an earlier prompt is found in the cache.
        let body = |n: u64| {
            serde_json::json!({
                "messages": [{"role": "user", "content": format!("{n} {prompt}")}],
                "max_tokens": n_gen, "temperature": 0, "ignore_eos": true, "coalesce_ms": 0,
            })
        };
        let first = self.next_id + 1;
        let bodies = (first..first + u64::from(n_streams)).map(body).collect();
        let (asked, streams) = self.chats(bodies).await?;
        judge(&streams, n_gen, asked)
    }

    /// Asks for all of these chats at once, and hears them to their end; when they were asked, too.
    ///
    /// # Errors
    /// The link ended, an answer breaks the contract or does not end in time.
    pub(super) async fn chats(
        &mut self,
        bodies: Vec<serde_json::Value>,
    ) -> anyhow::Result<(Instant, Vec<Stream>)> {
        let mut streams = Vec::new();
        let asked = Instant::now();
        for body in bodies {
            self.next_id += 1;
            let (id, root, node) = (format!("b{}", self.next_id), &self.root, &self.node);
            let publish = Publish {
                topic: format!("{root}/v1/{node}/req/{USER}/chat/{id}"),
                payload: Bytes::from(body.to_string()),
                at_least_once: true,
                retain: false,
                props: Props::default(),
                token: None,
            };
            streams.push(Stream {
                topic: format!("{root}/v1/resp/{USER}/{id}"),
                receiver: Receiver::default(),
                heard: Vec::new(),
                ended: None,
            });
            self.link.publish(publish).await?;
        }
        timeout(STEP_LIMIT, self.until_ended(&mut streams))
            .await
            .context("streams did not end in time")??;
        Ok((asked, streams))
    }

    async fn until_ended(&mut self, streams: &mut [Stream]) -> anyhow::Result<()> {
        while streams.iter().any(|stream| stream.ended.is_none()) {
            let Some(event) = self.inbox.recv().await else {
                bail!("the link ended")
            };
            let Inbound::Message(message) = event else {
                continue;
            };
            let now = Instant::now();
            self.link.try_ack(message.ack)?;
            let Some(stream) = streams
                .iter_mut()
                .find(|stream| stream.topic == message.topic)
            else {
                continue;
            };
            match stream.receiver.hear(&message.payload)? {
                Heard::Text { from } => {
                    let (text, calls) = (stream.receiver.text(), stream.receiver.calls());
                    // Else it is news of the queue.
                    if from < text.len() || !calls.is_empty() {
                        stream.heard.push((now, text.len()));
                    }
                }
                Heard::End => {
                    // Tokens may spell no text at all, as those of a model with random weights.
                    if stream.heard.is_empty() {
                        stream.heard.push((now, stream.receiver.text().len()));
                    }
                    stream.ended = Some(now);
                }
                Heard::Accepted | Heard::StartedOver | Heard::Repeat => {}
                // One node alone answers here.
                Heard::Refused(_) | Heard::OtherNode { .. } => {}
            }
        }
        Ok(())
    }
}

/// Bytes of text that came after `begin` and until `end`; none when one stream was over before another began,
/// as happens when a short stream waits for the disk.
fn bytes_between(heard: &[(Instant, usize)], begin: Instant, end: Instant) -> usize {
    let bytes_at = |at: Instant| {
        let last = heard.iter().rev().find(|(then, _)| *then <= at);
        last.map_or(0, |(_, bytes)| *bytes)
    };
    bytes_at(end).saturating_sub(bytes_at(begin))
}

/// Tokens come as text, so tokens inside a window are counted by their share of the stream's bytes.
fn judge(streams: &[Stream], n_gen: u32, asked: Instant) -> anyhow::Result<Measured> {
    let first = &streams[0];
    for stream in streams {
        let made = stream
            .finished()?
            .usage
            .as_ref()
            .map_or(0, |usage| usage.completion_tokens);
        if made != u64::from(n_gen) {
            bail!("a stream made {made} tokens, {n_gen} were asked for");
        }
    }
    let begin = streams
        .iter()
        .map(|stream| stream.heard[0].0)
        .max()
        .context("no stream")?;
    let end = streams
        .iter()
        .filter_map(|stream| stream.heard.last())
        .map(|(at, _)| *at)
        .min()
        .context("no stream")?;
    let tokens: f64 = streams
        .iter()
        .map(|stream| {
            let all = stream.receiver.text().len().max(1);
            let n_bytes = bytes_between(&stream.heard, begin, end);
            n_bytes as f64 / all as f64 * f64::from(n_gen)
        })
        .sum();
    let window = end.saturating_duration_since(begin).as_secs_f64();
    let prefill_ms = first
        .receiver
        .end()
        .and_then(|end| end.outcome.as_ref().ok())
        .and_then(|ok| ok.details.prefill_ms);
    Ok(Measured {
        tok_s: (window > 0.0 && tokens > 0.0).then(|| tokens / window),
        gaps: first
            .heard
            .windows(2)
            .map(|pair| pair[1].0 - pair[0].0)
            .collect(),
        ttft: first.heard[0].0 - asked,
        prefill: Duration::from_secs_f64(prefill_ms.unwrap_or(0.0) / 1e3),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_while_all_streams_run_and_none_when_one_came_too_late() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let heard = [(at(10), 4), (at(20), 9), (at(30), 20)];
        for (begin, end, expected) in [
            (10, 30, 16),
            (15, 25, 5),
            (0, 5, 0),
            (30, 30, 0),
            // The other stream had ended before this one began, and the other way round.
            (30, 5, 0),
            (25, 15, 0),
        ] {
            let found = bytes_between(&heard, at(begin), at(end));
            assert_eq!(found, expected, "{begin} to {end} ms");
        }
    }
}
