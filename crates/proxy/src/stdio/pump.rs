//! Moves bytes one way on raw descriptors, as long as one child lives.

use std::io::{self, IoSlice, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use mcpscope_core::Direction;
use mcpscope_hooks::{Backlog, Lane, Next, Passage, Place, Queued};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smallvec::SmallVec;

use super::ahead::Ahead;
use super::observe::Watch;
use super::unseen;
use crate::MAX_HOLD;
use crate::conversation::{Arrival, Observed};
use crate::framing::{Fate, Framing, Judgement, Part, Tap};
use crate::item::{Item, Pace};

/// Bytes read at once: the capacity of a Linux pipe.
const CHUNK_BYTES: usize = 64 * 1024;

/// How often it is seen to whether there is room again where another thread makes it.
const NO_ROOM: Duration = Duration::from_millis(10);

/// Moves bytes one way.
pub(super) struct Pump<'a> {
    pub(super) from: &'a OwnedFd,
    pub(super) to: &'a OwnedFd,
    /// There is something to read, or nobody to write it, when the pump is to stop.
    pub(super) stopped: &'a PipeReader,
    /// Whether what can be read when it is to stop goes on before it does.
    pub(super) drains: bool,
    pub(super) direction: Direction,
}

/// Why a pump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There is no more input.
    Input,
    /// What it writes is not read any more.
    NobodyReads,
    /// It was stopped.
    Stopped,
}

#[derive(Clone, Copy)]
struct Ready {
    input: bool,
    stopped: bool,
    nobody_reads: bool,
}

/// What a pump wakes up for.
#[derive(Clone, Copy)]
struct Wait {
    /// Whether it reads.
    input: bool,
    /// No longer than this.
    limit: Option<Duration>,
}

impl Pump<'_> {
    /// Runs until the input ends, the output is closed or the pump is stopped.
    pub(super) fn run(&self, side: &mut Option<Side<'_>>) -> End {
        self.relay(side).unwrap_or_else(|error| {
            // A closed pipe is how every stdio session ends.
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::warn!(direction = self.direction.as_str(), %error, "the relay ended");
            }
            End::NobodyReads
        })
    }

    fn relay(&self, side: &mut Option<Side<'_>>) -> io::Result<End> {
        let mut buffer = vec![0; CHUNK_BYTES];
        // Once the pump is to stop: what was in the pipe by then, so that nobody who keeps writing keeps it alive.
        let mut left = None;
        loop {
            let mut wait = Wait { input: true, limit: None };
            let (mut patience, mut goes_first) = (None, false);
            if let Some(side) = side {
                (patience, wait) = (side.patience(), self.go_on(side, left.is_some())?);
                wait.limit = sooner(wait.limit, patience);
                goes_first = wait.input && !side.ahead.is_empty();
                if goes_first {
                    wait = Wait { input: false, limit: Some(Duration::ZERO) };
                }
            }
            let ready = self.ready(wait, side.as_ref())?;
            if ready.stopped && left.is_none() {
                if !self.drains {
                    return Ok(End::Stopped);
                }
                // What cannot say how much it has, such as /dev/null, has nothing.
                let has = rustix::io::ioctl_fionread(self.from).unwrap_or(0);
                left = Some(usize::try_from(has).unwrap_or(usize::MAX));
            }
            if ready.nobody_reads {
                return Ok(End::NobodyReads);
            }
            if let Some(side) = side.as_mut().filter(|_| goes_first)
                && let Some(piece) = side.ahead.next()
            {
                self.relay_observed(side, &piece.bytes, Some(piece.at))?;
                continue;
            }
            if (left.is_some() && !ready.input && wait.input) || left == Some(0) {
                return Ok(End::Stopped);
            }
            if !ready.input {
                if let Some(side) = side.as_mut().filter(|_| patience.is_some()) {
                    self.relay_observed(side, &[], None)?;
                }
                continue;
            }
            let room = buffer.get_mut(..left.unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)).unwrap_or_default();
            let read = match rustix::io::read(self.from, room) {
                Ok(0) => return Ok(End::Input),
                Ok(read) => read,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::warn!(direction = self.direction.as_str(), %error, "cannot read");
                    return Ok(End::Input);
                }
            };
            left = left.map(|left| left.saturating_sub(read));
            let chunk = buffer.get(..read).unwrap_or_default();
            match side {
                Some(side) => self.relay_observed(side, chunk, None)?,
                None => write_all(self.to, &mut [IoSlice::new(chunk)])?,
            }
        }
    }

    /// Looks at what was read, and passes it on. It was read at `ahead` if that was before there was a server for it.
    fn relay_observed(&self, side: &mut Side<'_>, chunk: &[u8], ahead: Option<Instant>) -> io::Result<()> {
        let chunk = side.after_remains(chunk);
        let at = Instant::now();
        let came = Arrival { at, since: ahead.unwrap_or(at) };
        let (watch, direction) = (side.watch, side.direction);
        let (probe, backlog) = (&watch.relay.probe, (side.backlog.messages(), side.backlog.bytes()));
        // No input: what is held has waited long enough for its end.
        let hold =
            probe.holds() || backlog.0 > 0 || watch.holds(direction) || (probe.propagates() && !chunk.is_empty());
        if !hold && side.may_go_first(chunk) {
            return self.relay_first(side, chunk, came);
        }
        if direction == Direction::ToClient {
            watch.look_back();
        }
        let mut messages = 0;
        let Side { tap, lane, .. } = side;
        let fate = tap.feed(chunk, hold, |seen, is_held| {
            let Observed { passage, splices, subject, .. } = watch.observe((seen, is_held), direction, lane, came);
            messages += usize::from(passage == Passage::Now);
            Judgement { passage, splices, departure: if hold { lane.depart() } else { None }, subject }
        });
        let departure = lane.depart();
        let mut queued = probe.queued(direction, messages, at);
        let queue = &watch.relay.queue;
        let written = match fate {
            Fate::Now(bytes) => {
                queued.wait(&departure);
                if let Some(last) = bytes.last() {
                    side.mid_line = *last != b'\n';
                }
                queue.set(direction, messages, bytes.len());
                write_all(self.to, &mut [IoSlice::new(bytes)])
            }
            Fate::Parts(parts) => {
                queued.wait(parts.iter().filter_map(|part| part.departure.as_ref()).chain(&departure));
                let (waits, bytes) = backlog;
                let more: usize = parts.iter().map(|part| part.bytes.len()).sum();
                queue.set(direction, messages + waits, bytes + more);
                self.write_or_keep(side, parts, &mut queued, at)
            }
        };
        queue.set(direction, side.backlog.messages(), side.backlog.bytes());
        written?;
        if departure.is_some() {
            queued.wrote(&departure);
        }
        Ok(())
    }

    /// Passes on whole lines that nothing can hold back, and looks at them then: the server need not wait for that. What comes back
    /// is looked at before it goes on, so that who has an answer finds it counted.
    fn relay_first(&self, side: &mut Side<'_>, lines: &[u8], came: Arrival) -> io::Result<()> {
        let (relay, direction) = (&side.watch.relay, side.direction);
        let messages = memchr::memchr_iter(b'\n', lines).count();
        let mut queued = relay.probe.queued(direction, messages, came.at);
        relay.queue.set(direction, messages, lines.len());
        side.mid_line = false;
        side.watch.goes_unseen(lines, came, Instant::now());
        let written = write_all(self.to, &mut [IoSlice::new(lines)]);
        relay.queue.set(direction, 0, 0);
        if written.is_ok() {
            queued.all_wrote(Instant::now());
        }
        let departure = side.watch.has_gone();
        written?;
        departure.iter().for_each(|departure| queued.tell(departure));
        Ok(())
    }

    /// Writes what may be written at once, and keeps what a fault has touched, or what is behind that.
    fn write_or_keep(
        &self,
        side: &mut Side<'_>,
        mut parts: Vec<Part<'_>>,
        queued: &mut Queued,
        at: Instant,
    ) -> io::Result<()> {
        parts.retain(|part| part.passage != Passage::Never);
        if side.backlog.is_empty() && parts.iter().all(|part| part.passage == Passage::Now) {
            side.mid_line = self.write_parts(&parts, queued)?.unwrap_or(side.mid_line);
            return Ok(());
        }
        for part in parts {
            let (item, passage) = Item::new(part, &side.watch.relay, self.direction, at);
            let bytes = item.bytes.len();
            side.backlog.push(item, passage, bytes);
        }
        self.go_on(side, false).map(drop)
    }

    /// Writes what waits and may go by now, or all of it if it `is_over`. Says what to wait for next.
    fn go_on(&self, side: &mut Side<'_>, is_over: bool) -> io::Result<Wait> {
        let Watch { relay, conversation, .. } = side.watch;
        let mut look = None;
        while !side.backlog.is_empty() {
            let now = Instant::now();
            let next = side.backlog.next(!side.mid_line, |touch, item| {
                if is_over { touch.fate(now, |_| false, || false) } else { item.fate(touch, conversation, relay, now) }
            });
            match next {
                Next::Goes(mut item, touch) => {
                    if let Some(touch) = touch {
                        item.alter(&touch, relay, (Framing::Line, PLACE), now);
                    }
                    self.deliver(side, item, now)?;
                }
                Next::Lost(item) => item.lost(),
                Next::Nothing(until) => {
                    look = until;
                    break;
                }
            }
        }
        while !side.mid_line
            && let Some(line) = side.watch.posted(self.direction)
        {
            write_all(self.to, &mut [IoSlice::new(&line)])?;
        }
        let limits = &relay.limits;
        let has_room = side.backlog.messages() < limits.queue_messages && side.backlog.bytes() < limits.queue_bytes;
        let is_blocked = side.watch.is_full(self.direction.reverse());
        let limit = look.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = if is_blocked { sooner(limit, Some(NO_ROOM)) } else { limit };
        Ok(Wait { input: is_over || (has_room && !is_blocked), limit })
    }

    fn deliver(&self, side: &mut Side<'_>, mut item: Item, now: Instant) -> io::Result<()> {
        let Watch { relay, conversation, .. } = side.watch;
        if let Some(reply) = item.reply(conversation, now) {
            side.watch.post(self.direction.reverse(), format!("{}\n", reply.body).into_bytes());
            item.lost();
            return Ok(());
        }
        item.goes(conversation, now);
        match &item.slow {
            None => write_all(self.to, &mut [IoSlice::new(&item.bytes)])?,
            Some(slow) => {
                let mut pace = Pace::new(slow, now);
                let mut rest = item.bytes.as_slice();
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(pace.next(rest.len()));
                    write_all(self.to, &mut [IoSlice::new(piece)])?;
                    rest = after;
                    while !rest.is_empty() && pace.waits(relay) {
                        let limit = Some(pace.due().saturating_duration_since(Instant::now()));
                        let ready = self.ready(Wait { input: false, limit }, Some(side))?;
                        if ready.stopped || ready.nobody_reads {
                            pace.hurry();
                        }
                    }
                }
            }
        }
        if let Some(last) = item.bytes.last() {
            side.mid_line = *last != b'\n';
        }
        item.wrote();
        Ok(())
    }

    /// The input has ended: what is left of it is a message without its line feed. What is held goes first, when it may.
    pub(super) fn end(&self, side: &mut Side<'_>) {
        if let Err(error) = self.last(side)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(direction = self.direction.as_str(), %error, "the relay ended");
        }
    }

    fn last(&self, side: &mut Side<'_>) -> io::Result<()> {
        let at = Instant::now();
        let Side { watch, direction, tap, lane, .. } = side;
        if *direction == Direction::ToClient {
            watch.look_back();
        }
        // Half of what may have to be left out is no use to anybody.
        if !(tap.is_holding() && watch.holds(*direction)) {
            let mut messages = 0;
            let parts = tap.end(|seen, is_held| {
                let came = Arrival::now(at);
                let Observed { passage, splices, subject, .. } = watch.observe((seen, is_held), *direction, lane, came);
                messages += usize::from(passage == Passage::Now);
                Judgement { passage, splices, departure: lane.depart(), subject }
            });
            let mut queued = watch.relay.probe.queued(*direction, messages, at);
            queued.wait(parts.iter().filter_map(|part| part.departure.as_ref()));
            // Before the end of the stream the bytes have passed already, unless they were held.
            self.write_or_keep(side, parts, &mut queued, at)?;
        }
        let mut is_over = false;
        loop {
            let wait = self.go_on(side, is_over)?;
            // Behind a line that has no end nothing can begin.
            if side.backlog.is_empty() || is_over || side.mid_line {
                return Ok(());
            }
            let ready = self.ready(Wait { input: false, ..wait }, Some(side))?;
            is_over = ready.stopped || ready.nobody_reads;
        }
    }

    /// Returns whether the last of it is no line feed, if anything was written.
    fn write_parts(&self, parts: &[Part<'_>], queued: &mut Queued) -> io::Result<Option<bool>> {
        let mut bytes: Vec<_> = parts.iter().map(|part| IoSlice::new(&part.bytes)).collect();
        write_all(self.to, &mut bytes)?;
        queued.wrote(parts.iter().filter_map(|part| part.departure.as_ref()));
        let last = parts.iter().rev().find_map(|part| part.bytes.last());
        Ok(last.map(|last| *last != b'\n'))
    }

    /// Waits until something is to be done.
    fn ready(&self, wait: Wait, side: Option<&Side<'_>>) -> io::Result<Ready> {
        let timeout = wait.limit.map(timespec);
        let waiting = side.filter(|side| !side.backlog.is_empty());
        let _held = waiting.map(|side| side.watch.relay.hold(&side.backlog));
        let bell = side.and_then(|side| side.bell.as_ref());
        let mut fds = SmallVec::<[PollFd<'_>; 4]>::new();
        fds.push(PollFd::new(self.stopped, PollFlags::IN));
        // Asks for nothing, but is told of an error: a pipe that nobody reads any more.
        fds.push(PollFd::new(self.to, PollFlags::empty()));
        // What is not read would only tell of its end.
        fds.extend(wait.input.then(|| PollFd::new(self.from, PollFlags::IN)));
        fds.extend(bell.map(|bell| PollFd::new(bell, PollFlags::IN)));
        retried(|| poll(&mut fds, timeout.as_ref()))?;
        let seen = |at: usize| fds.get(at).map_or(PollFlags::empty(), PollFd::revents);
        let ready = Ready {
            input: wait.input && !seen(2).is_empty(),
            stopped: !seen(0).is_empty(),
            nobody_reads: seen(1).intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        };
        if let Some(bell) = bell.filter(|_| !seen(2 + usize::from(wait.input)).is_empty()) {
            // However often it rang.
            while rustix::io::read(bell, &mut [0_u8; 64]).is_ok_and(|read| read > 0) {}
        }
        Ok(ready)
    }
}

fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// What can be done to a line.
const PLACE: Place = Place {
    is_in_stream: true,
    takes_noise: true,
    takes_answer: true,
    has_headers: false,
    breaks: false,
    is_alone: true,
};

/// What a pump needs to observe its direction.
pub(super) struct Side<'a> {
    watch: &'a Watch,
    direction: Direction,
    tap: Tap,
    lane: Lane,
    /// What faults hold back, and what must stay behind it.
    backlog: Backlog<Item>,
    /// Can be read when faults begin or end; only where there can be any.
    bell: Option<PipeReader>,
    /// What was read while it could not go on yet: it goes before what is read next.
    pub(super) ahead: Ahead,
    /// What was written last is not the end of a line.
    pub(super) mid_line: bool,
    /// The next bytes are the end of a message that went to a child that is gone, and of which nothing was kept.
    remains: bool,
}

impl<'a> Side<'a> {
    pub(super) fn new(watch: &'a Watch, direction: Direction) -> Self {
        let tap = watch.relay.tap(Framing::Line);
        let bell = watch.relay.probe.has_faults().then(|| watch.relay.bell.thread());
        let bell = bell.and_then(|bell| {
            bell.inspect_err(|error| tracing::warn!(%error, "faults that end are seen late: no pipe to be told by"))
                .ok()
        });
        let (lane, backlog, ahead) = (Lane::default(), Backlog::default(), Ahead::default());
        Self { watch, direction, tap, lane, backlog, bell, ahead, mid_line: false, remains: false }
    }

    /// Whether this is whole lines for the server, few enough to be looked at only when they have gone.
    fn may_go_first(&self, chunk: &[u8]) -> bool {
        let limit = unseen::MAX_BYTES.min(self.watch.relay.limits.max_message);
        self.direction == Direction::ToServer && chunk.len() <= limit && chunk.ends_with(b"\n") && self.tap.is_between()
    }

    /// How long to wait for more of a message that is held to put trace context into it: nobody knows that it is one, or
    /// that its end will come. A fault may hold it for ever, and so may what has to be left out.
    fn patience(&self) -> Option<Duration> {
        let may_go = || !self.watch.relay.probe.holds() && !self.watch.holds(self.direction);
        (self.tap.is_holding() && may_go()).then_some(MAX_HOLD)
    }

    /// From here on another child reads. The message under way goes to it from its beginning: half of it is no message.
    pub(super) fn start_over(&mut self) {
        self.remains |= self.tap.is_passing();
        self.tap.rewind();
        self.mid_line = false;
    }

    /// Looks at what a client that has left wrote last, and passes nothing on.
    pub(super) fn take_rest(&mut self, from: &OwnedFd) {
        self.take_ahead(from);
        let (at, mut buffer) = (Instant::now(), vec![0; CHUNK_BYTES]);
        while let Ok(read @ 1..) = retried(|| rustix::io::read(from, &mut buffer)) {
            self.take(buffer.get(..read).unwrap_or_default(), at);
        }
        let Self { watch, direction, tap, lane, .. } = self;
        let came = Arrival::now(at);
        tap.end(|seen, _| Judgement::from(watch.observe((seen, false), *direction, lane, came).passage));
    }

    /// Looks at what a client has written for a server that it will not get, waits for no more, and passes nothing on.
    pub(super) fn take_ahead(&mut self, from: &OwnedFd) {
        // What was written only just now.
        if let Ok(there) = rustix::io::ioctl_fionread(from) {
            let _ = self.ahead.read(from, there);
        }
        while let Some(piece) = self.ahead.next() {
            self.take(&piece.bytes, piece.at);
        }
    }

    /// Looks at what waited `since` then, and passes nothing on.
    fn take(&mut self, bytes: &[u8], since: Instant) {
        let chunk = self.after_remains(bytes);
        let Self { watch, direction, tap, lane, .. } = self;
        let came = Arrival { at: Instant::now(), since };
        tap.feed(chunk, false, |seen, _| Judgement::from(watch.observe((seen, false), *direction, lane, came).passage));
    }

    /// The bytes behind the end of a message that no child can make sense of.
    fn after_remains<'c>(&mut self, chunk: &'c [u8]) -> &'c [u8] {
        if !self.remains {
            return chunk;
        }
        let end = memchr::memchr(b'\n', chunk).map_or(chunk.len(), |at| at + 1);
        let (remains, rest) = chunk.split_at(end);
        // The tap looks at nothing in it, but has to see its end.
        self.tap.feed(remains, false, |_, _| Passage::Now.into());
        self.remains = self.tap.is_passing();
        rest
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

/// Calls again what a signal interrupted.
pub(super) fn retried<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

pub(super) fn write_all(to: impl AsFd, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // What the system takes at once.
    const MAX_SLICES: usize = 1024;
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::writev(&to, slices.get(..MAX_SLICES).unwrap_or(slices)) {
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(rustix::io::Errno::INTR) => {}
            // Someone else may have made an inherited descriptor non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Clients on Node give sockets as standard streams, shells give pipes.
    #[test]
    fn a_pump_ends_once_nobody_reads_what_it_writes() {
        let (reader, pipe) = io::pipe().unwrap();
        let (socket, peer) = UnixStream::pair().unwrap();
        drop((reader, peer));
        for to in [OwnedFd::from(pipe), socket.into()] {
            let (from, _open) = io::pipe().unwrap();
            let (stopped, _stop) = io::pipe().unwrap();
            let (done, ended) = mpsc::channel();
            thread::spawn(move || {
                let (from, direction) = (OwnedFd::from(from), Direction::ToClient);
                let pump = Pump { from: &from, to: &to, stopped: &stopped, drains: true, direction };
                done.send(pump.run(&mut None))
            });
            let end = ended.recv_timeout(Duration::from_secs(10)).expect("it ends, and does not wait for input");
            assert_eq!(end, End::NobodyReads);
        }
    }
}
