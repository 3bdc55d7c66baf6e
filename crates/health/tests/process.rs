//! This process, read and compared with what else tells of it. What is counted is the whole process's, so this test has
//! one to itself.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_health::{ProcessReading, View, channel};
use rustix::param::clock_ticks_per_second;

const MIB: u64 = 1 << 20;

#[test]
fn it_is_read_as_it_is() {
    let (_reporter, view) = channel(Instant::now());
    memory(&view);
    cpu(&view);
    open_fds(&view);
    threads(&view);
}

fn read(view: &View) -> ProcessReading {
    view.process().unwrap()
}

/// A number of `/proc/self/status`, which nothing else here reads.
fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let number = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    number.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn memory(view: &View) {
    let read = || {
        let reading = read(view);
        let (size, resident) = (status("VmSize") << 10, status("VmRSS") << 10);
        assert!(reading.virtual_bytes.abs_diff(size) < MIB, "{reading:?} {size}");
        assert!(reading.resident_bytes.abs_diff(resident) < MIB, "{reading:?} {resident}");
        reading
    };
    let before = read();
    // Zeroes take no memory before they are touched.
    let mut bytes = std::hint::black_box(vec![0_u8; 64 << 20]);
    let mapped = read();
    assert!(mapped.virtual_bytes.abs_diff(before.virtual_bytes + 64 * MIB) < MIB, "{before:?} {mapped:?}");
    assert!(mapped.resident_bytes.abs_diff(before.resident_bytes) < MIB, "{before:?} {mapped:?}");
    bytes.fill(1);
    let touched = read();
    assert!(touched.virtual_bytes.abs_diff(mapped.virtual_bytes) < MIB, "{mapped:?} {touched:?}");
    assert!(touched.resident_bytes.abs_diff(mapped.resident_bytes + 64 * MIB) < MIB, "{mapped:?} {touched:?}");
    drop(std::hint::black_box(bytes));
}

fn cpu(view: &View) {
    let tick = Duration::from_secs(1) / u32::try_from(clock_ticks_per_second()).unwrap();
    let counted = || {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        // From the third field on; the 14th and the 15th are user and system time.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        tick * fields[11..13].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum::<u32>()
    };
    let enough = read(view).cpu + Duration::from_millis(300);
    // By a thread that is gone by then.
    thread::scope(|scope| scope.spawn(|| while counted() < enough {}).join().unwrap());
    let (before, between, after) = (counted(), read(view).cpu, counted());
    // Each of the two times is rounded down.
    assert!(before <= between && between <= after + 2 * tick, "{before:?} {between:?} {after:?}");
    assert!(between < read(view).cpu, "it stands still");
}

fn open_fds(view: &View) {
    let count = || read(view).open_fds.unwrap();
    let before = count();
    let ten: Vec<File> = (0..10).map(|_| File::open("/dev/null").unwrap()).collect();
    assert_eq!(count(), before + 10);
    drop(ten);
    assert_eq!(count(), before);

    // Another process looks at this one, between two readings that have its pipes in them.
    let mut outside = Command::new("sh");
    outside.args(["-c", "read go; ls /proc/$PPID/fd | wc -l"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut outside = outside.spawn().unwrap();
    let before = count();
    outside.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut seen = String::new();
    outside.stdout.as_mut().unwrap().read_to_string(&mut seen).unwrap();
    assert_eq!((before, count()), (seen.trim().parse().unwrap(), before));
    assert!(outside.wait().unwrap().success());
}

fn threads(view: &View) {
    let before = status("Threads");
    assert_eq!(read(view).threads, Some(before));
    let end = Arc::new(Barrier::new(6));
    let waiting = |end: Arc<Barrier>| thread::spawn(move || end.wait());
    let five: Vec<_> = (0..5).map(|_| waiting(Arc::clone(&end))).collect();
    assert_eq!((read(view).threads, status("Threads")), (Some(before + 5), before + 5));
    end.wait();
    for thread in five {
        thread.join().unwrap();
    }
}
