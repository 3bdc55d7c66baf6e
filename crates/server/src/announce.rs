//! What listens where, for people and for programs.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::NamedTempFile;

use crate::access::Access;
use crate::failure::{Failure, say};
use crate::instance::Instance;
use crate::listen::Bound;
use crate::observe::Bindings;
use crate::running::{Entry, Mode, Running};

/// The listeners of one instance, all bound.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) dashboard: Option<String>,
    pub(crate) grpc: Option<String>,
    pub(crate) probe: Option<String>,
    pub(crate) metrics: Option<String>,
    /// Names and URLs of proxied servers.
    pub(crate) proxies: Vec<(String, String)>,
}

impl Listeners {
    /// Those of the observing side.
    pub(crate) fn new(bindings: &Bindings) -> Self {
        let addr = |bound: &Option<Bound>| bound.as_ref().map(|bound| bound.addr);
        Self {
            dashboard: addr(&bindings.dashboard).map(|addr| format!("http://{addr}/")),
            grpc: addr(&bindings.grpc).map(|addr| addr.to_string()),
            probe: addr(&bindings.probe).map(|addr| format!("http://{addr}/")),
            metrics: addr(&bindings.metrics).map(|addr| format!("http://{addr}/metrics")),
            proxies: Vec::new(),
        }
    }

    /// The one-line listeners: what they are called, and where they are.
    fn single(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Self { dashboard, grpc, probe, metrics, proxies: _ } = self;
        let all = [("dashboard", dashboard), ("grpc", grpc), ("probe", probe), ("metrics", metrics)];
        all.into_iter().filter_map(|(what, at)| at.as_deref().map(|at| (what, at)))
    }

    /// Whether any of them takes commands.
    const fn take_commands(&self) -> bool {
        self.dashboard.is_some() || self.grpc.is_some()
    }

    /// Makes ready to announce: what can fail, fails before anything is started.
    pub(crate) fn prepare(self, ready_file: Option<&Path>) -> Result<Announcement, Failure> {
        let file = ready_file.map(|path| self.write(path)).transpose().map_err(Failure::usage)?;
        Ok(Announcement { listeners: self, ready: file.zip(ready_file.map(Path::to_owned)) })
    }

    /// Puts another ready file in the place of the one that was written before these listeners were those there are.
    pub(crate) fn announce_again(&self, ready_file: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = ready_file else { return Ok(()) };
        let cannot = || format!("cannot write the ready file {}", path.display());
        self.write(path)?.persist(path).map(drop).with_context(cannot)
    }

    fn write(&self, path: &Path) -> anyhow::Result<NamedTempFile> {
        let mut ready = serde_json::Map::new();
        ready.extend(self.single().map(|(what, at)| (what.to_owned(), at.into())));
        if !self.proxies.is_empty() {
            let proxies = self.proxies.iter().map(|(name, url)| (name.clone(), url.as_str().into()));
            ready.insert("proxy".into(), serde_json::Value::Object(proxies.collect()));
        }
        let cannot = || format!("cannot write the ready file {}", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(folder).with_context(cannot)?;
        writeln!(file, "{}", serde_json::Value::Object(ready)).with_context(cannot)?;
        Ok(file)
    }
}

/// What is to be announced, ready to be.
#[derive(Debug)]
pub(crate) struct Announcement {
    listeners: Listeners,
    ready: Option<(NamedTempFile, PathBuf)>,
}

impl Announcement {
    /// Prints one line per listener, puts the ready file in its place in one atomic step, and makes the instance known to
    /// the client commands as long as the answer lives.
    pub(crate) fn publish(self, name: &str, mode: Mode, instance: &Instance) -> Result<Option<Running>, Failure> {
        let secret = instance.access.secret().filter(|_| instance.has_chaos());
        let entry = Entry {
            name: name.to_owned(),
            pid: std::process::id(),
            mode,
            grpc: self.listeners.grpc.clone(),
            dashboard: self.listeners.dashboard.clone(),
            chaos_token: secret.map(str::to_owned),
        };
        // Without a note the instance must be named by its address: no reason not to run.
        let running = Running::publish(&entry)
            .inspect_err(|error| tracing::warn!("the client commands will not find this instance by itself: {error:#}"))
            .ok();
        self.listeners.single().for_each(|(what, at)| say(format_args!("{what} {at}")));
        for (name, url) in &self.listeners.proxies {
            say_proxy(url, Some(name).filter(|_| mode == Mode::Serve));
        }
        // Shown nowhere else to whoever reads it here: whose token comes from a file has it there.
        if let (Access::Random(secret), true) =
            (&instance.access, instance.may_ever_start_experiments() && self.listeners.take_commands())
        {
            say(format_args!("chaos token {secret}"));
        }
        if let Some((file, path)) = self.ready {
            let cannot = || format!("cannot write the ready file {}", path.display());
            file.persist(&path).with_context(cannot).map_err(Failure::usage)?;
        }
        Ok(running)
    }
}

/// Prints the line of one proxied server, with its name if there are others.
pub(crate) fn say_proxy(url: &str, name: Option<&String>) {
    match name {
        Some(name) => say(format_args!("proxy {url} {}", name.escape_debug())),
        None => say(format_args!("proxy {url}")),
    }
}
