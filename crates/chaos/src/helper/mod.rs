//! Memory and processors are taken, and packets lost, by a helper process, which is this very program, started once more.
//!
//! The helper cannot outlive the program: it dies with the thread that started it (parent-death signal), with its end of
//! the pipe that orders come by, at its own deadline, and by its own limits. What it took goes with it.

#[cfg(target_os = "linux")]
mod aim;
#[cfg(target_os = "linux")]
mod burn;
#[cfg(target_os = "linux")]
mod groups;
#[cfg(target_os = "linux")]
mod hold;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod mapping;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod pressure;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod room;
#[cfg(target_os = "linux")]
mod serve;
mod target;
#[cfg(target_os = "linux")]
mod wire;

use std::io;
use std::path::PathBuf;

pub use target::ResourceTarget;

/// That this program calls [`run_if_requested`], without which there is no [`ResourceTarget`].
///
/// It proves beforehand what could not be undone: a program that does not call it would run a second time as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Ready(());

/// Does the work of a helper and ends the process, if this process was started as one; else it returns at once.
///
/// To be called first in `main`, before any thread is started, any file opened or any argument read: whatever comes before
/// it, every helper does as well.
#[must_use = "a ResourceTarget is made of it"]
pub fn run_if_requested() -> Ready {
    #[cfg(target_os = "linux")]
    if let Some(parent) = linux::requested() {
        linux::run(parent);
    }
    Ready(())
}

/// Why a helper cannot do what it is for. Nothing was started, or what was is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// Helpers need Linux.
    #[error("helper processes need Linux")]
    Unsupported,
    /// The program cannot be found again.
    #[error("this program cannot be started as a helper: expected /proc/self/exe to be there")]
    NoProgram(#[source] io::Error),
    /// The system does not start it.
    #[error("the helper process cannot be started")]
    NotStarted(#[source] io::Error),
    /// The system takes too long to start it.
    #[error("the helper process was not started within {ms} ms")]
    TooSlow {
        /// How long it was waited for.
        ms: u64,
    },
    /// There is no network with faults.
    #[error("{0}")]
    NoNetwork(
        /// Why, and what can be done about it.
        String,
    ),
    /// It is not known how much memory is free.
    #[error("how much memory is free cannot be told: expected MemAvailable in /proc/meminfo")]
    UnknownMemory,
    /// More memory than there can ever be.
    #[error("{wanted} is wanted: expected at most {total}, which is {limit}")]
    TooLarge {
        /// How much was asked for.
        wanted: String,
        /// How much the limit allows.
        total: String,
        /// The tightest limit.
        limit: String,
    },
    /// No memory can be taken now.
    #[error("no memory can be taken: of {total}, which is {limit}, {free} is free, and {reserve} stays in reserve")]
    NoRoom {
        /// How much is free.
        free: String,
        /// How much there is.
        total: String,
        /// How much is not touched.
        reserve: String,
        /// The limit that leaves the least.
        limit: String,
    },
    /// More cores than this process may run on, or it and the server that is aimed at.
    #[error("{wanted} cores are wanted: expected at most {there}, on which a helper may run")]
    TooManyCores {
        /// How many were asked for.
        wanted: u64,
        /// How many there are.
        there: u64,
    },
    /// Nobody whose control group could be meant.
    #[error("there is no process to aim at: expected one of a server")]
    NoVictim,
    /// The server has ended, or has moved.
    #[error("{0}")]
    VictimLost(
        /// What has become of it.
        String,
    ),
    /// It is not known in which control group the server is.
    #[error("no control group that counts the {controller} of {server} can be seen here: expected one")]
    NoGroup {
        /// Whose.
        server: String,
        /// Which of what is counted.
        controller: &'static str,
    },
    /// There is nothing to aim at.
    #[error(
        "{server} has no control group of its own: mcpscope is counted in {}, too: expected the server in another one",
        .group.display()
    )]
    SharedGroup {
        /// Whose.
        server: String,
        /// The folder of the group.
        group: PathBuf,
    },
    /// It is not said which is meant.
    #[error("the servers are in different control groups ({groups}): expected target_processes to name one of them")]
    SeveralGroups {
        /// Each server with the folder of its group.
        groups: String,
    },
    /// The control group is not for this process to change.
    #[error(
        "a helper cannot be moved to the control group of {server}: expected to be able to write {}{}",
        .file.display(),
        remedy(.source, *.is_v2)
    )]
    GroupNotWritable {
        /// Whose.
        server: String,
        /// What would have to be written.
        file: PathBuf,
        /// Whether the group is one of version 2.
        is_v2: bool,
        /// Why it cannot be.
        #[source]
        source: io::Error,
    },
    /// Something else that a parameter must not be.
    #[error(transparent)]
    Parameter(#[from] crate::ParameterError),
}

/// What helps who may not write to a control group, as the rest of a sentence.
fn remedy(error: &io::Error, is_v2: bool) -> &'static str {
    match (error.kind(), is_v2) {
        (io::ErrorKind::ReadOnlyFilesystem, _) => ", which takes a container that may write to its /sys/fs/cgroup",
        // cgroups(7), "Cgroup delegation containment rules": whoever is outside of what is delegated to them cannot move in.
        (io::ErrorKind::PermissionDenied, true) => {
            ", as root can, or whoever starts both mcpscope and the server by `systemd-run --user --scope COMMAND`"
        }
        (io::ErrorKind::PermissionDenied, false) => {
            ", as root can, or whom root has made the owner of that file (chown)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_write_to_a_group_is_told_what_helps() {
        let told = |kind: io::ErrorKind, is_v2| {
            let (server, file) = ("weather".to_owned(), PathBuf::from("/g/cgroup.procs"));
            HelperError::GroupNotWritable { server, file, is_v2, source: kind.into() }.to_string()
        };
        let plain =
            "a helper cannot be moved to the control group of weather: expected to be able to write /g/cgroup.procs";
        assert_eq!(told(io::ErrorKind::NotFound, true), plain);
        let denied = told(io::ErrorKind::PermissionDenied, true);
        assert!(denied.starts_with(plain) && denied.contains("`systemd-run --user --scope COMMAND`"), "{denied}");
        let denied = told(io::ErrorKind::PermissionDenied, false);
        assert!(denied.starts_with(plain) && denied.ends_with("(chown)"), "{denied}");
        assert!(
            told(io::ErrorKind::ReadOnlyFilesystem, false)
                .ends_with("a container that may write to its /sys/fs/cgroup")
        );
    }
}
