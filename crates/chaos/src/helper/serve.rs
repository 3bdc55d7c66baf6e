//! The life of a helper: it makes sure of its own end, greets, gets its job, does it, and is gone.

use std::fs;
use std::io::{self, BufReader, IsTerminal as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::set_name;
use rustix::time::{ClockId, clock_gettime};

use crate::TargetError;
use crate::helper::aim::Aim;
use crate::helper::burn::{self, Burn};
use crate::helper::groups::Groups;
use crate::helper::hold::Hold;
use crate::helper::linux::kill_self;
use crate::helper::network;
use crate::helper::room::Own;
use crate::helper::wire::{self, Job, Take, Task, Told};

/// How long a job is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is told what has been achieved.
pub(super) const TELL: Duration = Duration::from_millis(100);
/// How late it may end by itself before it is ended hard.
const LATE: Duration = Duration::from_millis(500);
/// What it may use of a core for itself, in seconds.
pub(super) const OWN_SECONDS: u64 = 2;
/// What it may use of its address space for itself.
const OWN_BYTES: u64 = 64 << 20;
const STACK: usize = 128 << 10;

/// Now, by the clock that all processes of a system have in common.
pub(super) fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// Whoever started it has set its process group and its ends of the pipes.
pub(super) fn serve() -> io::Result<()> {
    // Those who look at a list of processes see what it is.
    let _ = set_name(c"mcpscope-chaos");
    let (stdin, stdout) = (io::stdin(), io::stdout());
    if stdin.is_terminal() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // The first to go when memory runs out. Where that cannot be said, there are the other limits.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    limit(Resource::Core, 0);
    wire::write(&stdout, &Told::Ready)?;
    if !is_ready(stdin.as_fd(), PATIENCE)? {
        return Ok(());
    }
    let Some(job) = wire::read::<Job>(&mut BufReader::new(stdin.lock()))? else { return Ok(()) };
    let left = Duration::from_nanos(job.deadline_ns).saturating_sub(monotonic());
    // Read after the other clock: a helper that ended before its time would have failed.
    let deadline = Instant::now() + left;
    let tell = |told| wire::write(&stdout, &told);
    let take = match job.task {
        Task::Take(take) => take,
        Task::Network(netem) => return network::serve(&netem, deadline, stdin.as_fd(), tell),
    };
    watch_over(deadline)?;
    // It has the policy of the program. Load that nothing else can run beside could not be ended.
    if is_real_time() {
        let why = "the program has a real-time scheduling policy, and so would the load: expected another policy";
        return tell(Told::Failed(why.to_owned()));
    }
    let aim = match Aim::take(job.victims, take.controller()) {
        Ok(aim) => aim,
        Err(error) => return tell(Told::Failed(TargetError::of(&error).0)),
    };
    if let Some(group) = aim.group() {
        tell(Told::Group(group.display().to_string()))?;
    }
    let mut work = match Work::start(take, &aim, deadline) {
        Ok(work) => work,
        Err(error) => return tell(Told::Failed(error.to_string())),
    };
    let (mut next_told, mut paused) = (Instant::now(), false);
    loop {
        let now = Instant::now();
        let step = aim.lost().map_or_else(|| work.step(now), Err);
        let pauses = step.as_ref().map_or(true, |wait| !wait.is_zero());
        // Also when it has got to where it is to be.
        if now >= next_told || (pauses && !paused) {
            tell(Told::Achieved(work.achieved(now)))?;
            next_told = now + TELL;
        }
        paused = pauses;
        let wait = match step {
            Ok(wait) => wait.min(next_told.saturating_duration_since(now)).min(deadline.saturating_duration_since(now)),
            Err(why) if work.achieved(now) == 0.0 => return tell(Told::Failed(why)),
            Err(why) => return tell(Told::LetGo(why)),
        };
        // A helper is told nothing more: whatever comes, and the end of the pipe too, means that it is over.
        if now >= deadline || is_ready(stdin.as_fd(), wait)? {
            return tell(Told::Achieved(work.achieved(Instant::now())));
        }
    }
}

enum Work {
    Memory(Hold),
    Cpu(Burn),
}

impl Work {
    fn start(take: Take, aim: &Aim, deadline: Instant) -> io::Result<Self> {
        let seconds = deadline.saturating_duration_since(Instant::now()).as_secs() + 1 + OWN_SECONDS;
        match take {
            Take::Memory { bytes } => {
                limit(Resource::Cpu, seconds);
                limit_address_space(bytes);
                Ok(Self::Memory(Hold::new(bytes, !aim.victims().is_empty(), Instant::now())))
            }
            Take::Cpu { cores, duty } => {
                limit(Resource::Cpu, seconds.saturating_mul(cores as u64));
                let quota = Groups::of(Path::new("/"), None).cpu_quota();
                let burn = Burn::start(&burn::cores(aim.victims()), cores, duty, quota)?;
                limit_address_space(0);
                Ok(Self::Cpu(burn))
            }
        }
    }

    /// Goes on, and says when to do so again; or why it must not.
    fn step(&mut self, now: Instant) -> Result<Duration, String> {
        match self {
            Self::Memory(hold) => hold.step(now),
            Self::Cpu(_) => Ok(TELL),
        }
    }

    fn achieved(&self, now: Instant) -> f64 {
        match self {
            Self::Memory(hold) => hold.achieved(),
            Self::Cpu(burn) => burn.achieved(now),
        }
    }
}

/// Ends this process hard if it has not ended by itself soon after its deadline.
pub(super) fn watch_over(deadline: Instant) -> io::Result<()> {
    let here = Arc::new(Barrier::new(2));
    let is_up = Arc::clone(&here);
    let watch = move || {
        is_up.wait();
        thread::sleep((deadline + LATE).saturating_duration_since(Instant::now()));
        kill_self();
    };
    thread::Builder::new().name("watchdog".into()).stack_size(STACK).spawn(watch)?;
    // It has the memory that a thread begins with before that is limited.
    here.wait();
    Ok(())
}

/// Whether this process may keep everybody else from running.
fn is_real_time() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
    // The field 41, of which these begin with the third: SCHED_FIFO, SCHED_RR and SCHED_DEADLINE, sched(7).
    after_name.split_ascii_whitespace().nth(41 - 3).is_none_or(|policy| matches!(policy, "1" | "2" | "6"))
}

/// Allows so much more than there is.
pub(super) fn limit_address_space(more: u64) {
    if let Some(own) = Own::read() {
        limit(Resource::As, own.address_space.saturating_add(more).saturating_add(OWN_BYTES));
    }
}

/// Lowers a limit. One that is lower stays.
pub(super) fn limit(resource: Resource, most: u64) {
    let now = getrlimit(resource);
    let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
    // To lower a limit is always allowed.
    let _ = setrlimit(resource, Rlimit { current: lower(now.current), maximum: lower(now.maximum) });
}

/// Whether something can be read within this time; the end of what comes is something.
pub(super) fn is_ready(from: impl AsFd, within: Duration) -> io::Result<bool> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
