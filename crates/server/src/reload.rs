//! Reading the configuration again, when its files change or someone asks for it.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mcpscope_chaos::{Check, Plan};
use mcpscope_config::{ConfigErrors, Configuration, Settings};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::chaos::Chaos;
use crate::cli::{self, Common};
use crate::failure::{Failure, say};
use crate::instance::Instance;

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

/// Keys that can change while the program runs.
const CHANGE: [&str; 4] = ["chaos.enabled", "chaos.file", "chaos.mode", "servers"];

/// What was read again.
#[derive(Debug)]
pub(crate) struct Reloaded {
    pub(crate) settings: Settings,
    pub(crate) chaos: Chaos,
    /// Whether the plan is another one than before.
    pub(crate) is_new_plan: bool,
}

/// Reads the configuration again, as often as it changes.
pub(crate) struct Reloads {
    files: Vec<PathBuf>,
    /// These, and those that they name.
    watched: Vec<PathBuf>,
    /// What `--chaos` says.
    chaos: Option<cli::Chaos>,
    steady_state: Option<Vec<Check>>,
    /// What was configured when the program started.
    started: Settings,
    started_seed: Option<u64>,
    /// What was handed on last.
    plan: Plan,
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
    /// Watches the files that this instance was configured by.
    pub(crate) fn new(common: &Common, instance: &Instance, at_hangup: AtHangup) -> Result<Self, Failure> {
        let hangups = match at_hangup {
            AtHangup::Reload => Some(signal(SignalKind::hangup()).map_err(Failure::internal)?),
            AtHangup::Nothing => None,
        };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // They are read once more at first: they may have changed since.
        Ok(Self {
            files: common.config.clone(),
            watched: instance.files.clone(),
            chaos: common.chaos,
            steady_state: common.steady_state.clone(),
            started: instance.settings.clone(),
            started_seed: instance.configured_chaos.seed,
            plan: instance.configured_chaos.plan.clone(),
            hangups,
            looks,
            seen: Vec::new(),
            read: None,
            due: None,
        })
    }

    /// Waits for a configuration that is good and has been read again. Of a bad one every error is said, and nothing else
    /// done. May be given up at any time.
    pub(crate) async fn next(&mut self) -> Reloaded {
        loop {
            // Kept until it is done: whoever gives up now still gets it next time.
            let reason = match self.due {
                Some(reason) => reason,
                None => self.reason().await,
            };
            self.due = Some(reason);
            self.read = Some(self.look().await);
            let load = Load {
                files: self.files.clone(),
                chaos: self.chaos,
                steady_state: self.steady_state.clone(),
                observes: self.started.observability_enabled,
            };
            let loaded = tokio::task::spawn_blocking(move || load.load()).await;
            if let Ok((files, _)) = &loaded
                && *files != self.watched
            {
                // Not all of them have been looked at before they were read.
                self.watched.clone_from(files);
                continue;
            }
            self.due = None;
            match loaded {
                Ok((_, Ok((settings, chaos)))) => {
                    if reason == Reason::Hangup {
                        say("mcpscope: the configuration was read again");
                    }
                    let is_new_plan = chaos.plan != self.plan;
                    self.plan.clone_from(&chaos.plan);
                    return Reloaded { settings, chaos, is_new_plan };
                }
                Ok((_, Err(errors))) => {
                    say(format_args!("mcpscope: the configuration is bad, and what runs stays as it is:\n{errors}"));
                }
                Err(error) => tracing::error!(%error, "the configuration cannot be read again"),
            }
        }
    }

    /// Hands on what a good configuration says about chaos if its plan is another one, and says of all else in it that it takes
    /// effect at the next start: there is nothing more that every command can change while it runs. Never ends.
    pub(crate) async fn follow(&mut self, mut change: impl FnMut(Chaos)) -> Infallible {
        loop {
            let reloaded = self.next().await;
            self.say_what_waits(&reloaded);
            if reloaded.is_new_plan {
                change(reloaded.chaos);
            }
        }
    }

    /// Names the keys that cannot change while the program runs.
    pub(crate) fn say_what_waits(&self, reloaded: &Reloaded) {
        let differences = self.started.differences(&reloaded.settings).into_iter();
        let mut waiting: Vec<String> = differences.filter(|key| !CHANGE.contains(&key.as_str())).collect();
        if reloaded.chaos.seed != self.started_seed {
            waiting.push("chaos_engine.seed".to_owned());
        }
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
                _ = self.looks.tick(), if !self.watched.is_empty() => {
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
        let files = self.watched.clone();
        let look = move || files.iter().map(|file| stamp(file)).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }
}

/// What it takes to read the configuration.
struct Load {
    files: Vec<PathBuf>,
    chaos: Option<cli::Chaos>,
    steady_state: Option<Vec<Check>>,
    /// Whether this program observes, which only its next start can change.
    observes: bool,
}

impl Load {
    /// What it says, and the files that it depends on.
    fn load(self) -> (Vec<PathBuf>, Result<(Settings, Chaos), ConfigErrors>) {
        let Self { files, chaos, steady_state, observes } = self;
        match Configuration::load(&files, mcpscope_config::environment(&[])) {
            Ok(mut configuration) => {
                let settings = configuration.settings.clone();
                configuration.settings.observability_enabled = observes;
                let chaos = Chaos::read(&configuration, chaos);
                (configuration.files, chaos.map(|chaos| (settings, chaos.judged_by(steady_state.as_ref()))))
            }
            Err(errors) => (errors.files().to_vec(), Err(errors)),
        }
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
