//! What listens where, for people and for programs.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::NamedTempFile;

use crate::failure::{Failure, say};

/// The listeners of one instance, all bound.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) dashboard: Option<String>,
    /// Names and URLs of proxied servers.
    pub(crate) proxies: Vec<(String, String)>,
}

impl Listeners {
    /// Makes ready to announce: what can fail, fails before anything is started.
    pub(crate) fn prepare(self, ready_file: Option<&Path>) -> Result<Announcement, Failure> {
        let file = ready_file.map(|path| self.write(path)).transpose().map_err(Failure::usage)?;
        Ok(Announcement { listeners: self, ready: file.zip(ready_file.map(Path::to_owned)) })
    }

    fn write(&self, path: &Path) -> anyhow::Result<NamedTempFile> {
        let mut ready = serde_json::Map::new();
        if let Some(url) = &self.dashboard {
            ready.insert("dashboard".into(), url.as_str().into());
        }
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
    /// Prints one line per listener, and puts the ready file in its place in one atomic step.
    pub(crate) fn publish(self) -> Result<(), Failure> {
        if let Some(url) = &self.listeners.dashboard {
            say(format_args!("dashboard {url}"));
        }
        for (_, url) in &self.listeners.proxies {
            say(format_args!("proxy {url}"));
        }
        let Some((file, path)) = self.ready else { return Ok(()) };
        let cannot = || format!("cannot write the ready file {}", path.display());
        file.persist(&path).with_context(cannot).map_err(Failure::usage)?;
        Ok(())
    }
}
