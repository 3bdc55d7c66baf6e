//! What listens where, for people and for programs.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
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
        let ready = ready_file.map(|path| self.ready_at(path)).transpose().map_err(Failure::usage)?;
        Ok(Announcement { listeners: self, ready })
    }

    /// A ready file in the making. None is at its place from here on: what an earlier instance had left there is not this one's.
    fn ready_at(&self, path: &Path) -> anyhow::Result<(NamedTempFile, PathBuf)> {
        let file = self.write(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| cannot_write(path)),
            _ => Ok((file, path.to_owned())),
        }
    }

    fn write(&self, path: &Path) -> anyhow::Result<NamedTempFile> {
        let mut ready = serde_json::Map::new();
        ready.extend(self.single().map(|(what, at)| (what.to_owned(), at.into())));
        if !self.proxies.is_empty() {
            let proxies = self.proxies.iter().map(|(name, url)| (name.clone(), url.as_str().into()));
            ready.insert("proxy".into(), serde_json::Value::Object(proxies.collect()));
        }
        let cannot = || cannot_write(path);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(folder).with_context(cannot)?;
        writeln!(file, "{}", serde_json::Value::Object(ready)).with_context(cannot)?;
        Ok(file)
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write the ready file {}", path.display())
}

/// The file that tells programs that an instance is there, and where. Dropped, it is gone.
#[derive(Debug)]
struct ReadyFile {
    path: PathBuf,
    /// By which it is known from what another instance has put in its place. Open: as long as it is, no other file gets its inode.
    file: fs::File,
}

impl ReadyFile {
    /// Puts it in its place in one atomic step.
    fn publish(file: NamedTempFile, path: PathBuf) -> anyhow::Result<Self> {
        let file = file.persist(&path).with_context(|| cannot_write(&path))?;
        Ok(Self { path, file })
    }

    /// Whether what is at its place is it.
    fn is_there(&self) -> io::Result<bool> {
        let [there, own] = [fs::symlink_metadata(&self.path)?, self.file.metadata()?];
        Ok((there.dev(), there.ino()) == (own.dev(), own.ino()))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if self.is_there().unwrap_or(false) {
            // Nobody is left to be told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What was announced, as long as this lives.
#[derive(Debug)]
#[must_use = "the instance is found only as long as this lives"]
pub(crate) struct Announced {
    _running: Option<Running>,
    ready: Option<ReadyFile>,
}

impl Announced {
    /// Other listeners are there now than were announced: a ready file of those takes the place of the one there is.
    pub(crate) fn change(&mut self, listeners: &Listeners) -> anyhow::Result<()> {
        let Some(ready) = &mut self.ready else { return Ok(()) };
        let changed = ReadyFile::publish(listeners.write(&ready.path)?, ready.path.clone())?;
        // The one before is not at its place any more.
        *ready = changed;
        Ok(())
    }
}

/// What is to be announced, ready to be.
#[derive(Debug)]
pub(crate) struct Announcement {
    listeners: Listeners,
    ready: Option<(NamedTempFile, PathBuf)>,
}

impl Announcement {
    /// Prints one line per listener, puts the ready file in its place, and makes the instance known to the client commands: file
    /// and note are there as long as the answer lives.
    pub(crate) fn publish(self, name: &str, mode: Mode, instance: &Instance) -> Result<Announced, Failure> {
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
        let ready = self.ready.map(|(file, path)| ReadyFile::publish(file, path)).transpose();
        Ok(Announced { _running: running, ready: ready.map_err(Failure::usage)? })
    }
}

/// Prints the line of one proxied server, with its name if there are others.
pub(crate) fn say_proxy(url: &str, name: Option<&String>) {
    match name {
        Some(name) => say(format_args!("proxy {url} {}", name.escape_debug())),
        None => say(format_args!("proxy {url}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(path: &Path) -> ReadyFile {
        let (file, path) = Listeners::default().ready_at(path).unwrap();
        ReadyFile::publish(file, path).unwrap()
    }

    #[test]
    fn a_ready_file_is_there_as_long_as_its_instance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        fs::write(&path, "of an instance that was killed").unwrap();
        let (file, _) = Listeners::default().ready_at(&path).unwrap();
        assert!(!path.exists(), "not ready yet");
        let ready = ReadyFile::publish(file, path.clone()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
        let mut announced = Announced { _running: None, ready: Some(ready) };
        let grpc = Some("127.0.0.1:1".to_owned());
        announced.change(&Listeners { grpc, ..Listeners::default() }).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"grpc\":\"127.0.0.1:1\"}\n");
        drop(announced);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn the_ready_file_of_another_instance_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        let before = publish(&path);
        let next = publish(&path);
        drop(before);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn a_ready_file_that_somebody_took_away_is_there_again_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        let mut announced = Announced { _running: None, ready: Some(publish(&path)) };
        fs::remove_file(&path).unwrap();
        announced.change(&Listeners::default()).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn the_ready_file_of_the_next_instance_stays_after_its_reload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        let before = publish(&path);
        let mut next = Announced { _running: None, ready: Some(publish(&path)) };
        next.change(&Listeners::default()).unwrap();
        drop(before);
        assert!(path.exists());
    }
}
