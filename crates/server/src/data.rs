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
    /// The other folders of instances of this name.
    others: Vec<PathBuf>,
}

/// The folder of an instance that has ended, which no other gets as long as this lives.
#[derive(Debug)]
pub(crate) struct Abandoned {
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
        let paths: Vec<PathBuf> = numbers.map(|name| parent.join(name)).collect();
        for (taken, path) in paths.iter().enumerate() {
            let cannot = || format!("cannot use the data folder {}", path.display());
            DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(cannot)?;
            let lock = File::options().write(true).create(true).truncate(false).open(path.join("lock"));
            let lock = lock.with_context(cannot)?;
            match lock.try_lock() {
                Ok(()) => {
                    let mut others = paths;
                    let path = others.remove(taken);
                    return Ok(Self { path, _locked: lock, others });
                }
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

    /// The folders of other instances of this name that have ended: they ran beside one that had this folder, and whether there will
    /// ever be another one in their place is not known.
    pub(crate) fn abandoned(&self) -> impl Iterator<Item = Abandoned> {
        self.others.iter().filter_map(|path| {
            let lock = File::options().write(true).open(path.join("lock")).ok()?;
            lock.try_lock().ok()?;
            Some(Abandoned { path: path.clone(), _locked: lock })
        })
    }
}

impl Abandoned {
    /// The folder in it of one part of the program, if there is one.
    pub(crate) fn part(&self, name: &str) -> Option<PathBuf> {
        Some(self.path.join(name)).filter(|path| path.is_dir())
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
    fn the_folders_of_those_that_have_ended_are_found() {
        let parent = tempfile::tempdir().unwrap();
        let take = || Data::take(parent.path(), "demo").unwrap();
        let abandoned = |data: &Data| data.abandoned().map(|folder| folder.path).collect::<Vec<_>>();
        let (one, two, three, four) = (take(), take(), take(), take());
        let [second, fourth] = [&two, &four].map(|data| data.path.clone());
        fs::create_dir(two.part("chaos")).unwrap();
        drop((two, four));
        assert_eq!(abandoned(&one), [second.clone(), fourth.clone()]);
        let parts = |data: &Data| data.abandoned().map(|folder| folder.part("chaos")).collect::<Vec<_>>();
        assert_eq!(parts(&three), [Some(second.join("chaos")), None]);
        let held: Vec<_> = one.abandoned().collect();
        assert_eq!(take().path, parent.path().join("demo.5"), "nobody gets one that is held");
        drop(held);
        drop(one);
        let again = take();
        assert_eq!(again.path, parent.path().join("demo"));
        assert_eq!(abandoned(&again), [second, fourth, parent.path().join("demo.5")]);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 5, "none is made");
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
