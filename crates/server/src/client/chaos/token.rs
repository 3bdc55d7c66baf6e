//! The chaos token: from a file, or as an instance of this user on this machine left it.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, anyhow};

use crate::failure::Failure;
use crate::running::{self, Entry};

/// Longer than any token.
const MAX_BYTES: u64 = 4096;

/// What the instance at `addr` may want to see before it starts something.
///
/// # Errors
/// The file that is named cannot be read, or has no token.
pub(super) fn find(file: Option<&Path>, addr: &str) -> Result<Option<String>, Failure> {
    match file {
        Some(path) => read(path).context("--token-file").map_err(Failure::usage).map(Some),
        None => Ok(left(addr, running::instances())),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    File::open(path).with_context(cannot)?.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(cannot)?;
    match text.trim() {
        _ if text.len() as u64 > MAX_BYTES => Err(anyhow!("{} is longer than a token", path.display())),
        "" => Err(anyhow!("{} has no token in it", path.display())),
        token => Ok(token.to_owned()),
    }
}

/// That of the instance which listens at exactly this address: another one is not shown it.
fn left(addr: &str, running: Vec<Entry>) -> Option<String> {
    let addr: SocketAddr = addr.parse().ok()?;
    let listens = |entry: &Entry| entry.grpc.as_deref().and_then(|at| at.parse().ok()) == Some(addr);
    running.into_iter().find(listens)?.chaos_token
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::running::Mode;

    #[test]
    fn a_token_is_what_is_in_the_file_without_the_space_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, " 0123abc\n").unwrap();
        assert_eq!(read(&path).unwrap(), "0123abc");
        for (text, why) in [("", "has no token in it"), (" \n", "has no token in it"), (&*"x".repeat(5000), "longer")] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(format!("{:#}", read(&dir.path().join("none")).unwrap_err()).starts_with("cannot read "));
    }

    #[test]
    fn only_the_instance_that_listens_there_is_shown_its_token() {
        let entry = |grpc: &str, token: Option<&str>| Entry {
            name: "x".into(),
            pid: 1,
            mode: Mode::Run,
            grpc: Some(grpc.into()),
            dashboard: None,
            chaos_token: token.map(Into::into),
        };
        let running =
            || vec![entry("127.0.0.1:1", Some("one")), entry("[::1]:1", Some("two")), entry("127.0.0.1:3", None)];
        for (addr, token) in [
            ("127.0.0.1:1", Some("one")),
            ("[::1]:1", Some("two")),
            ("127.0.0.1:2", None),
            ("127.0.0.1:3", None),
            ("10.0.0.1:1", None),
            ("localhost:1", None),
        ] {
            assert_eq!(left(addr, running()).as_deref(), token, "{addr}");
        }
    }
}
