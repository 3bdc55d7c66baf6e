//! Taking memory, and keeping it for as long as that is safe.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::param::page_size;

use crate::helper::mapping::Mapping;
use crate::helper::pressure::Watch;
use crate::helper::room::{Own, size};

/// How much is taken at a time: some 20 ms of work, after which everything is looked at again.
const CHUNK: u64 = 32 << 20;
/// How often it is looked at while nothing more is taken.
const LOOK: Duration = Duration::from_millis(100);

/// Memory that is being taken or kept.
#[derive(Debug)]
pub(super) struct Hold {
    wanted: u64,
    chunks: Vec<Mapping>,
    /// There is to be no more: it is all there, or the rest has no room.
    is_grown: bool,
    /// What this process had anyway, which is memory that is taken, too.
    own: u64,
    /// The same if it is not, because another control group has it.
    elsewhere: u64,
    most: u64,
    watch: Watch,
}

impl Hold {
    /// `has_moved` says whether this process has come from another control group, where all that it has so far stays.
    pub(super) fn new(wanted: u64, has_moved: bool, now: Instant) -> Self {
        let own = Own::read().map_or(0, |own| own.anonymous);
        let (own, elsewhere) = if has_moved { (0, own) } else { (own, 0) };
        let watch = Watch::new(Path::new("/"), now);
        Self { wanted, chunks: Vec::new(), is_grown: false, own, elsewhere, most: 0, watch }
    }

    /// Goes on, and says when to do so again; or why what is held must be let go.
    pub(super) fn step(&mut self, now: Instant) -> Result<Duration, String> {
        if let Some(danger) = self.watch.danger(now) {
            self.chunks.clear();
            return Err(danger);
        }
        if !self.is_grown {
            self.grow()?;
        }
        if let Some(own) = Own::read() {
            self.most = self.most.max(own.anonymous.saturating_sub(self.elsewhere));
        }
        Ok(if self.is_grown { LOOK } else { Duration::ZERO })
    }

    fn grow(&mut self) -> Result<(), String> {
        let mapped: u64 = self.chunks.iter().map(Mapping::bytes).sum();
        let held = self.own + mapped;
        let limits = self.watch.limits().own();
        let tightest = limits.iter().min_by_key(|limit| limit.room());
        let room = tightest.map_or(u64::MAX, |limit| limit.room());
        let page = page_size();
        let whole_pages = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX) / page * page;
        // At least a page: it is seen whether there is any memory.
        let missing = self.wanted.saturating_sub(held).max(1).next_multiple_of(page as u64);
        let next = whole_pages(missing.min(CHUNK).min(room));
        let chunk = if next == 0 { Ok(None) } else { Mapping::populated(next, page).map(Some) };
        match chunk {
            Ok(Some(chunk)) => {
                self.chunks.push(chunk);
                self.is_grown = held + next as u64 >= self.wanted;
            }
            Ok(None) if mapped == 0 => {
                let what = tightest
                    .map(|limit| format!("{} has {} free of {}", limit.what, size(limit.free), size(limit.total)));
                return Err(format!("no memory can be taken: {}", what.unwrap_or_default()));
            }
            Err(error) if mapped == 0 => return Err(format!("the system gives no memory: {error}")),
            // As much as there is.
            Ok(None) | Err(_) => self.is_grown = true,
        }
        Ok(())
    }

    /// Bytes, at most.
    pub(super) fn achieved(&self) -> f64 {
        self.most as f64
    }
}
