//! The instances that run on this machine: each leaves a note in the runtime directory, where the client commands find it.
//!
//! A note is as alive as the lock on it: what ended without tidying up is seen at once, whoever has its process id now.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// More than any note needs.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Of an instance's name in that of its note.
const MAX_NAME_CHARS: usize = 64;

/// What an instance tells about itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) mode: Mode,
    /// `HOST:PORT`; absent if gRPC is off.
    pub(crate) grpc: Option<String>,
    /// URL; absent if there is no dashboard.
    pub(crate) dashboard: Option<String>,
    /// What starts chaos experiments; absent if nothing is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chaos_token: Option<String>,
}

/// Which command runs it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Run,
    Proxy,
    Serve,
    Demo,
}

/// Keeps an instance's note in its place; dropped, the instance is not found any more.
#[derive(Debug)]
#[must_use = "the instance is found only as long as this lives"]
pub(crate) struct Running {
    path: PathBuf,
    /// Its lock is the sign of life.
    _locked: File,
}

impl Running {
    /// Makes the instance known to the client commands of this user.
    ///
    /// # Errors
    /// None of the runtime directories is ours alone, or the note cannot be written or locked.
    pub(crate) fn publish(entry: &Entry) -> anyhow::Result<Self> {
        Self::publish_in_one_of(&places(), entry)
    }

    /// In the first place that is fit.
    fn publish_in_one_of(places: &[PathBuf], entry: &Entry) -> anyhow::Result<Self> {
        let mut why_not = Vec::new();
        for place in places {
            match Self::publish_in(place, entry) {
                Ok(running) => return Ok(running),
                Err(error) => why_not.push(format!("{error:#}")),
            }
        }
        bail!("{}", why_not.join("; "))
    }

    fn publish_in(place: &Path, entry: &Entry) -> anyhow::Result<Self> {
        let cannot = || format!("cannot use the runtime directory {}", place.display());
        make(place).with_context(cannot)?;
        // Tidies up after those that could not.
        drop(instances_in(place));
        // Locked before it has its name: nobody ever sees it without. A temporary file has mode 0600.
        let mut note = tempfile::NamedTempFile::new_in(place).with_context(cannot)?;
        note.as_file().try_lock().map_err(io::Error::from).with_context(cannot)?;
        serde_json::to_writer(&mut note, entry).with_context(cannot)?;
        note.write_all(b"\n").with_context(cannot)?;
        let path = place.join(format!("{}-{}.json", file_name(&entry.name), entry.pid));
        let locked = note.persist(&path).map_err(|error| error.error).with_context(cannot)?;
        Ok(Self { path, _locked: locked })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever is left, the next reader removes: its lock ends with us.
        let _ = fs::remove_file(&self.path);
    }
}

/// The instances of this user that run now, by name. A place that cannot be trusted or read holds none.
pub(crate) fn instances() -> Vec<Entry> {
    let mut found: Vec<Entry> = places().iter().flat_map(|place| instances_in(place)).collect();
    found.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
    found
}

/// Where notes are, the best place first. The others are read too: an MCP client starts `mcpscope run` with hardly any
/// variables, so that it may not see the place that a shell sees.
fn places() -> Vec<PathBuf> {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let session = session.filter(|dir| dir.is_absolute() && dir.is_dir()).map(|dir| dir.join("mcpscope"));
    let own = std::env::temp_dir().join(format!("mcpscope-{}", rustix::process::geteuid().as_raw()));
    let mut seen = HashSet::new();
    session.into_iter().chain([own]).filter(|place| seen.insert(place.clone())).collect()
}

/// Makes the directory, or sees that the one that is there is fit.
fn make(place: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    check(place)
}

/// Others could have put something else there: a link to lead us astray, or a directory of theirs to read and answer in.
fn check(place: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(place)?;
    if !found.is_dir() {
        bail!("expected a directory, and no link to one");
    }
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        bail!("expected it to belong to user {user}; it belongs to user {}", found.uid());
    }
    let mode = found.mode() & 0o7777;
    if mode != 0o700 {
        bail!("expected mode 0700; found {mode:04o}");
    }
    Ok(())
}

fn instances_in(place: &Path) -> Vec<Entry> {
    if check(place).is_err() {
        return Vec::new();
    }
    let Ok(notes) = fs::read_dir(place) else { return Vec::new() };
    let notes = notes.flatten().map(|note| note.path());
    notes
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .filter_map(|path| read(&path))
        .collect()
}

/// The note, if its instance is alive; else it is removed.
fn read(path: &Path) -> Option<Entry> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        // Another reader may have been faster.
        Ok(()) => {
            let _ = fs::remove_file(path);
            None
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(MAX_NOTE_BYTES).read_to_string(&mut text).ok()?;
            serde_json::from_str(&text).ok()
        }
        Err(TryLockError::Error(_)) => None,
    }
}

/// An instance's name as part of a file's.
pub(crate) fn file_name(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.chars().take(MAX_NAME_CHARS).map(|c| if fits(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn entry(name: &str, pid: u32) -> Entry {
        let grpc = Some("127.0.0.1:50051".to_owned());
        Entry { name: name.into(), pid, mode: Mode::Run, grpc, dashboard: None, chaos_token: None }
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("mcpscope");
        (dir, place)
    }

    fn files(place: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(place).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_instance_is_found_while_it_runs() {
        let (_dir, place) = place();
        let (one, two) = (entry("one", 1), entry("two", 2));
        let first = Running::publish_in(&place, &one).unwrap();
        let second = Running::publish_in(&place, &two).unwrap();
        assert_eq!(files(&place), ["one-1.json", "two-2.json"]);
        let mut found = instances_in(&place);
        found.sort_by_key(|entry| entry.pid);
        assert_eq!(found, [one, two.clone()]);
        drop(first);
        assert_eq!(instances_in(&place), [two]);
        drop(second);
        assert!(files(&place).is_empty());
    }

    #[test]
    fn a_note_is_for_its_user_alone() {
        let (_dir, place) = place();
        let running = Running::publish_in(&place, &entry("demo", 7)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&place), mode(&running.path)), (0o700, 0o600));
        let text = fs::read_to_string(&running.path).unwrap();
        assert_eq!(
            text,
            "{\"name\":\"demo\",\"pid\":7,\"mode\":\"run\",\"grpc\":\"127.0.0.1:50051\",\"dashboard\":null}\n"
        );
    }

    #[test]
    fn a_place_that_is_not_fit_is_passed_over() {
        let ((_dir, place), (_other, fit)) = (place(), self::place());
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
        let one = entry("one", 1);
        let running = Running::publish_in_one_of(&[place.clone(), fit.clone()], &one).unwrap();
        assert_eq!(instances_in(&fit), std::slice::from_ref(&one));
        drop(running);
        let error = format!("{:#}", Running::publish_in_one_of(std::slice::from_ref(&place), &one).unwrap_err());
        assert!(error.contains(&place.display().to_string()), "{error}");
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_directory() {
        let (_dir, place) = place();
        for (name, expected) in [("../x y", ".._x_y-1.json"), ("", "-1.json"), ("ü/\0", "___-1.json")] {
            let running = Running::publish_in(&place, &entry(name, 1)).unwrap();
            assert_eq!(files(&place), [expected]);
            assert_eq!(instances_in(&place)[0].name, name);
            drop(running);
        }
        let long = Running::publish_in(&place, &entry(&"x".repeat(1000), 1)).unwrap();
        assert_eq!(files(&place), [format!("{}-1.json", "x".repeat(64))]);
        drop(long);
    }

    #[test]
    fn what_a_killed_instance_left_is_removed() {
        let (_dir, place) = place();
        make(&place).unwrap();
        fs::write(place.join("killed-9.json"), serde_json::to_string(&entry("killed", 9)).unwrap()).unwrap();
        fs::write(place.join("other.txt"), "not a note").unwrap();
        assert_eq!(instances_in(&place), []);
        assert_eq!(files(&place), ["other.txt"]);
        fs::write(place.join("killed-9.json"), "").unwrap();
        let running = Running::publish_in(&place, &entry("new", 1)).unwrap();
        assert_eq!(files(&place), ["new-1.json", "other.txt"]);
        drop(running);
    }

    #[test]
    fn what_is_no_note_is_passed_over() {
        let (_dir, place) = place();
        make(&place).unwrap();
        for (name, text) in [("a", "nonsense".to_owned()), ("b", "[".repeat(1 << 20)), ("c", "{\"name\":1}".to_owned())]
        {
            let path = place.join(format!("{name}.json"));
            fs::write(&path, text).unwrap();
            let file = File::open(&path).unwrap();
            file.lock().unwrap();
            assert_eq!(read(&path), None, "{name}");
            assert!(path.exists(), "{name}: it is alive");
        }
    }

    #[test]
    fn a_directory_that_is_not_ours_alone_is_refused() {
        let refused = |place: &Path| {
            assert_eq!(instances_in(place), []);
            format!("{:#}", Running::publish_in(place, &entry("demo", 1)).unwrap_err())
        };
        let (_dir, place) = place();
        make(&place).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
        let error = refused(&place);
        assert!(error.ends_with("expected mode 0700; found 0755"), "{error}");
        assert!(files(&place).is_empty());

        // A link, even to a directory that would do.
        fs::set_permissions(&place, Permissions::from_mode(0o700)).unwrap();
        let link = place.with_file_name("link");
        symlink(&place, &link).unwrap();
        let error = refused(&link);
        assert!(error.ends_with("expected a directory, and no link to one"), "{error}");
        assert!(files(&place).is_empty());

        let file = place.with_file_name("file");
        fs::write(&file, "").unwrap();
        assert!(refused(&file).ends_with("expected a directory, and no link to one"));
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        // The root directory is root's; where we are root, one that we give away is not ours.
        let (_dir, place) = place();
        make(&place).unwrap();
        let foreign = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&place, Some(12_345), None).unwrap();
            place
        } else {
            PathBuf::from("/")
        };
        let error = format!("{:#}", Running::publish_in(&foreign, &entry("demo", 1)).unwrap_err());
        assert!(error.contains("it belongs to user"), "{error}");
        assert_eq!(instances_in(&foreign), []);
    }
}
