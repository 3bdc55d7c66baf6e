//! Reading the configuration again, when its files change or someone asks for it.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mcpscope_config::Settings;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::failure::{Failure, say};

/// How often the files are looked at. One that has changed is read once it has not changed for this long.
const LOOK: Duration = Duration::from_millis(500);

/// What SIGHUP means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtHangup {
    /// The configuration is read again.
    Reload,
    /// It is somebody else's.
    Nothing,
}

/// What tells one version of a file from the next, through links and whether it was written to or replaced; nothing if it
/// cannot be told.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// Reads the configuration again, as often as it changes.
pub(crate) struct Reloads {
    files: Vec<PathBuf>,
    /// What was configured when the program started.
    started: Settings,
    hangups: Option<Signal>,
    looks: Interval,
    /// At the last look.
    seen: Vec<Stamp>,
    /// When they were last read.
    read: Option<Vec<Stamp>>,
    /// Why they are to be read now, if they are.
    due: Option<Reason>,
}

/// Why the files are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Hangup,
    Change,
}

impl Reloads {
    /// Watches `files`, which gave these settings.
    pub(crate) fn new(files: &[PathBuf], settings: &Settings, at_hangup: AtHangup) -> Result<Self, Failure> {
        let hangups = match at_hangup {
            AtHangup::Reload => Some(signal(SignalKind::hangup()).map_err(Failure::internal)?),
            AtHangup::Nothing => None,
        };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // They are read once more at first: they may have changed since.
        let (files, started) = (files.to_vec(), settings.clone());
        Ok(Self { files, started, hangups, looks, seen: Vec::new(), read: None, due: None })
    }

    /// Waits for settings that are good and have been read again. Of bad ones every error is said, and nothing else done.
    /// May be given up at any time.
    pub(crate) async fn next(&mut self) -> Settings {
        loop {
            // Kept until it is done: whoever gives up now still gets it next time.
            let reason = match self.due {
                Some(reason) => reason,
                None => self.reason().await,
            };
            self.due = Some(reason);
            self.read = Some(self.look().await);
            let files = self.files.clone();
            let load = move || Settings::load(&files, mcpscope_config::environment(&[]));
            let loaded = tokio::task::spawn_blocking(load).await;
            self.due = None;
            match loaded {
                Ok(Ok(settings)) => {
                    if reason == Reason::Hangup {
                        say("mcpscope: the configuration was read again");
                    }
                    return settings;
                }
                Ok(Err(errors)) => {
                    say(format_args!("mcpscope: the configuration is bad, and what runs stays as it is:\n{errors}"));
                }
                Err(error) => tracing::error!(%error, "the configuration cannot be read again"),
            }
        }
    }

    /// Says of every good configuration that it takes effect at the next start: there is nothing in it that this command
    /// can change while it runs. Never ends.
    pub(crate) async fn change_nothing(&mut self) -> Infallible {
        loop {
            let settings = self.next().await;
            self.say_what_waits(&settings);
        }
    }

    /// Names the keys that cannot change while the program runs.
    pub(crate) fn say_what_waits(&self, settings: &Settings) {
        let waiting: Vec<String> =
            self.started.differences(settings).into_iter().filter(|key| key != "servers").collect();
        if !waiting.is_empty() {
            let takes = if waiting.len() == 1 { "takes" } else { "take" };
            say(format_args!("mcpscope: {takes} effect at the next start: {}", waiting.join(", ")));
        }
    }

    /// Waits until the files are to be read again. May be given up at any time.
    async fn reason(&mut self) -> Reason {
        loop {
            tokio::select! {
                () = hangup(&mut self.hangups) => return Reason::Hangup,
                _ = self.looks.tick(), if !self.files.is_empty() => {
                    let now = self.look().await;
                    let is_steady = now == self.seen;
                    self.seen.clone_from(&now);
                    // Whoever is still writing is waited for.
                    if is_steady && self.read.as_ref() != Some(&now) {
                        return Reason::Change;
                    }
                }
            }
        }
    }

    async fn look(&self) -> Vec<Stamp> {
        let files = self.files.clone();
        let look = move || files.iter().map(|file| stamp(file)).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }
}

async fn hangup(hangups: &mut Option<Signal>) {
    match hangups {
        Some(hangups) => drop(hangups.recv().await),
        None => std::future::pending().await,
    }
}

fn stamp(file: &Path) -> Stamp {
    let found = fs::metadata(file).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()))
}
