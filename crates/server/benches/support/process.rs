//! What the kernel knows of processes.

use std::fs;
use std::io;
use std::time::Duration;

/// The processor time so far of a process and of those that it started and that still run, which is how nginx works.
pub(crate) fn cpu_time(id: u32) -> io::Result<Duration> {
    children(id)?.into_iter().chain([id]).map(cpu_clock).sum()
}

/// What `/proc/ID/status` says of the memory of a process under this name, in bytes.
pub(crate) fn memory(id: u32, name: &str) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: Option<f64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| io::Error::other(format!("no {name} in the status of a process")))
}

/// The processes that a process started and that still run.
pub(crate) fn children(id: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.and_then(|parent| parent.trim().parse().ok()) == Some(id) {
            children.push(child);
        }
    }
    Ok(children)
}

/// The clock of a process. It goes on the time on a processor of all its threads, to the nanosecond: the sum of the first
/// fields of `/proc/ID/task/*/schedstat`, and what those had that have ended, which are no longer there.
#[cfg(target_os = "linux")]
fn cpu_clock(id: u32) -> io::Result<Duration> {
    use nix::time::ClockId;
    use nix::unistd::Pid;

    let id = Pid::from_raw(id.try_into().map_err(io::Error::other)?);
    Ok(ClockId::pid_cpu_clock_id(id)?.now()?.into())
}

#[cfg(not(target_os = "linux"))]
fn cpu_clock(_id: u32) -> io::Result<Duration> {
    Err(io::ErrorKind::Unsupported.into())
}
