//! What outlives an instance: a folder of its own, by its name.

use std::convert::Infallible;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, anyhow};

use crate::failure::Failure;
use crate::running;

/// Instances of one name at once that find a folder.
const OF_ONE_NAME: usize = 32;

/// Where data is kept, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeepIn {
    /// Nothing is.
    Off,
    /// In a folder for each instance in this one.
    Folder(PathBuf),
}

impl FromStr for KeepIn {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "off" { Self::Off } else { Self::Folder(text.into()) })
    }
}

/// The folder of an instance, which no other has as long as this lives.
#[derive(Debug)]
pub(crate) struct Data {
    path: PathBuf,
    _locked: File,
}

impl Data {
    /// The folder of the instance of this name: where it was told to be, or in the user's state directory. None where nothing
    /// is to be kept. Where the user did not choose, what is wrong with the folder is logged, and nothing is kept.
    ///
    /// # Errors
    /// The folder that was chosen cannot be used.
    pub(crate) fn find(chosen: Option<&KeepIn>, name: &str) -> Result<Option<Self>, Failure> {
        match chosen {
            Some(KeepIn::Off) => Ok(None),
            Some(KeepIn::Folder(folder)) => {
                Self::take(folder, name).map(Some).map_err(|error| Failure::usage(error.context("--data")))
            }
            None => {
                let taken = state_directory()
                    .ok_or_else(|| anyhow!("no home directory: expected HOME or XDG_STATE_HOME"))
                    .and_then(|folder| Self::take(&folder, name));
                let say = |error: &anyhow::Error| {
                    tracing::warn!("experiments are kept in memory alone, and gone when this ends: {error:#}");
                };
                Ok(taken.inspect_err(say).ok())
            }
        }
    }

    /// The first folder for this name that nobody has.
    fn take(parent: &Path, name: &str) -> anyhow::Result<Self> {
        let name = running::file_name(name);
        let name = if name.trim_matches('.').is_empty() { "unnamed" } else { name.as_str() };
        let numbers = (1..=OF_ONE_NAME).map(|n| if n == 1 { name.to_owned() } else { format!("{name}.{n}") });
        for name in numbers {
            let path = parent.join(name);
            let cannot = || format!("cannot use the data folder {}", path.display());
            DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(cannot)?;
            let lock = File::options().write(true).create(true).truncate(false).open(path.join("lock"));
            let lock = lock.with_context(cannot)?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path, _locked: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy)).with_context(|| {
            format!("{OF_ONE_NAME} instances of the name {name} have their data in {}", parent.display())
        })
    }

    /// A folder in it for one part of the program.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// `$XDG_STATE_HOME/mcpscope`, by default `~/.local/state/mcpscope`.
fn state_directory() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".local/state"));
    Some(state.or_else(home)?.join("mcpscope"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn two_of_one_name_have_two_folders_and_the_next_one_the_first_again() {
        let parent = tempfile::tempdir().unwrap();
        let take = || Data::take(parent.path(), "demo").unwrap();
        let (one, two) = (take(), take());
        assert_eq!((&one.path, &two.path), (&parent.path().join("demo"), &parent.path().join("demo.2")));
        assert_eq!(fs::metadata(&one.path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(one);
        assert_eq!(take().path, parent.path().join("demo"));
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let parent = tempfile::tempdir().unwrap();
        for (name, expected) in [("../x", ".._x"), ("..", "unnamed"), (".", "unnamed"), ("", "unnamed"), ("a/b", "a_b")]
        {
            assert_eq!(Data::take(parent.path(), name).unwrap().path, parent.path().join(expected));
        }
    }

    #[test]
    fn a_folder_that_was_chosen_has_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let chosen: KeepIn = file.path().to_str().unwrap().parse().unwrap();
        let error = Data::find(Some(&chosen), "demo").unwrap_err().to_string();
        assert!(error.starts_with("--data: cannot use the data folder"), "{error}");
        assert!(Data::find(Some(&"off".parse().unwrap()), "demo").unwrap().is_none());
    }
}
