//! What listens where, for people and for programs.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::failure::{Failure, say};

/// The listeners of one instance, all bound.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) dashboard: Option<String>,
    /// Names and URLs of proxied servers.
    pub(crate) proxies: Vec<(String, String)>,
}

impl Listeners {
    /// Prints one line per listener and writes the ready file.
    pub(crate) fn announce(&self, ready_file: Option<&Path>) -> Result<(), Failure> {
        if let Some(url) = &self.dashboard {
            say(format_args!("dashboard {url}"));
        }
        for (_, url) in &self.proxies {
            say(format_args!("proxy {url}"));
        }
        match ready_file {
            Some(path) => self.write(path).map_err(Failure::usage),
            None => Ok(()),
        }
    }

    /// In one atomic step: who sees the file sees all of it.
    fn write(&self, path: &Path) -> anyhow::Result<()> {
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
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
        writeln!(file, "{}", serde_json::Value::Object(ready)).with_context(cannot)?;
        file.persist(path).with_context(cannot)?;
        Ok(())
    }
}
