//! Moves bytes one way on raw descriptors, as long as one child lives.

use std::io::{self, IoSlice, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use mcpscope_core::Direction;
use mcpscope_hooks::{Lane, Passage, Queued};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::observe::Watch;
use crate::MAX_HOLD;
use crate::conversation::Observed;
use crate::framing::{Fate, Framing, Judgement, Part, Seen, Tap};

/// Bytes read at once: the capacity of a Linux pipe.
const CHUNK_BYTES: usize = 64 * 1024;

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
            let ready = self.ready(side.as_ref().and_then(Side::patience))?;
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
            if (left.is_some() && !ready.input) || left == Some(0) {
                return Ok(End::Stopped);
            }
            if !ready.input {
                if let Some(side) = side {
                    self.relay_observed(side, &[])?;
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
                Some(side) => self.relay_observed(side, chunk)?,
                None => write_all(self.to, &mut [IoSlice::new(chunk)])?,
            }
        }
    }

    fn relay_observed(&self, side: &mut Side<'_>, chunk: &[u8]) -> io::Result<()> {
        let chunk = side.after_remains(chunk);
        let at = Instant::now();
        let Side { watch, direction, tap, lane, .. } = side;
        let probe = &watch.relay.probe;
        // No input: what is held has waited long enough for its end.
        let hold = probe.holds() || watch.holds(*direction) || (probe.propagates() && !chunk.is_empty());
        let mut messages = 0;
        let fate = tap.feed(chunk, hold, |seen| {
            let Observed { passage, splices, .. } = watch.observe(seen, *direction, lane, at);
            messages += usize::from(passage != Passage::Never);
            Judgement { passage, splices, departure: if hold { lane.depart() } else { None } }
        });
        let departure = lane.depart();
        let mut queued = probe.queued(*direction, messages, at);
        let queue = &watch.relay.queue;
        let written = match fate {
            Fate::Now(bytes) => {
                queued.wait(&departure);
                if let Some(last) = bytes.last() {
                    side.mid_line = *last != b'\n';
                }
                queue.set(*direction, messages, bytes.len());
                write_all(self.to, &mut [IoSlice::new(bytes)])
            }
            Fate::Parts(parts) => {
                queued.wait(parts.iter().filter_map(|part| part.departure.as_ref()).chain(&departure));
                queue.set(*direction, messages, parts.iter().map(|part| part.bytes.len()).sum());
                self.write_parts(&parts, &mut queued).map(|mid_line| side.mid_line = mid_line.unwrap_or(side.mid_line))
            }
        };
        queue.set(*direction, 0, 0);
        written?;
        if departure.is_some() {
            queued.wrote(&departure);
        }
        Ok(())
    }

    /// The input has ended: what is left of it is a message without its line feed.
    pub(super) fn end(&self, side: &mut Side<'_>) {
        let at = Instant::now();
        let Side { watch, direction, tap, lane, .. } = side;
        // Half of what may have to be left out is no use to anybody.
        if tap.is_holding() && watch.holds(*direction) {
            return;
        }
        let mut messages = 0;
        let parts = tap.end(|seen| {
            let Observed { passage, splices, .. } = watch.observe(seen, *direction, lane, at);
            messages += usize::from(passage != Passage::Never);
            Judgement { passage, splices, departure: lane.depart() }
        });
        let mut queued = watch.relay.probe.queued(*direction, messages, at);
        queued.wait(parts.iter().filter_map(|part| part.departure.as_ref()));
        // Before the end of the stream the bytes have passed already, unless they were held.
        match self.write_parts(&parts, &mut queued) {
            Ok(mid_line) => side.mid_line = mid_line.unwrap_or(side.mid_line),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => tracing::warn!(direction = direction.as_str(), %error, "the relay ended"),
        }
    }

    /// Returns whether the last of it is no line feed, if anything was written.
    fn write_parts(&self, parts: &[Part<'_>], queued: &mut Queued) -> io::Result<Option<bool>> {
        let mut mid_line = None;
        // What need not wait goes on together with what is before it.
        let together = |a: &Part<'_>, b: &Part<'_>| a.passage != Passage::Never && b.passage == Passage::Now;
        for parts in parts.chunk_by(together) {
            match parts.first().map(|part| part.passage) {
                Some(Passage::Never) => continue,
                Some(Passage::At(due)) => {
                    self.wait_until(due)?;
                    queued.held_until(due);
                }
                Some(Passage::Now) | None => {}
            }
            let mut bytes: Vec<_> = parts.iter().map(|part| IoSlice::new(&part.bytes)).collect();
            write_all(self.to, &mut bytes)?;
            queued.wrote(parts.iter().filter_map(|part| part.departure.as_ref()));
            let last = parts.iter().rev().find_map(|part| part.bytes.last());
            mid_line = last.map(|last| *last != b'\n').or(mid_line);
        }
        Ok(mid_line)
    }

    /// Waits until something is to be done, and no longer than `patience`.
    fn ready(&self, patience: Option<Duration>) -> io::Result<Ready> {
        let timeout = patience.map(timespec);
        let mut fds = [
            PollFd::new(self.from, PollFlags::IN),
            PollFd::new(self.stopped, PollFlags::IN),
            // Asks for nothing, but is told of an error: a pipe that nobody reads any more.
            PollFd::new(self.to, PollFlags::empty()),
        ];
        retried(|| poll(&mut fds, timeout.as_ref()))?;
        let [from, stopped, to] = fds.map(|fd| fd.revents());
        Ok(Ready {
            input: !from.is_empty(),
            stopped: !stopped.is_empty(),
            nobody_reads: to.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        })
    }

    /// Waits for a time, or until the pump is to stop.
    fn wait_until(&self, due: Instant) -> io::Result<()> {
        let left = || timespec(due.saturating_duration_since(Instant::now()));
        retried(|| poll(&mut [PollFd::new(self.stopped, PollFlags::IN)], Some(&left()))).map(drop)
    }
}

/// What a pump needs to observe its direction.
pub(super) struct Side<'a> {
    watch: &'a Watch,
    direction: Direction,
    tap: Tap,
    lane: Lane,
    /// What was written last is not the end of a line.
    pub(super) mid_line: bool,
    /// The next bytes are the end of a message that went to a child that is gone, and of which nothing was kept.
    remains: bool,
}

impl<'a> Side<'a> {
    pub(super) fn new(watch: &'a Watch, direction: Direction) -> Self {
        let tap = watch.relay.tap(Framing::Line);
        Self { watch, direction, tap, lane: Lane::default(), mid_line: false, remains: false }
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
        let Self { watch, direction, tap, lane, .. } = self;
        let (at, mut buffer) = (Instant::now(), vec![0; CHUNK_BYTES]);
        let mut look = |seen: Seen<'_>| Judgement::from(watch.observe(seen, *direction, lane, at).passage);
        while let Ok(read @ 1..) = retried(|| rustix::io::read(from, &mut buffer)) {
            tap.feed(buffer.get(..read).unwrap_or_default(), false, &mut look);
        }
        tap.end(look);
    }

    /// The bytes behind the end of a message that no child can make sense of.
    fn after_remains<'c>(&mut self, chunk: &'c [u8]) -> &'c [u8] {
        if !self.remains {
            return chunk;
        }
        let end = memchr::memchr(b'\n', chunk).map_or(chunk.len(), |at| at + 1);
        let (remains, rest) = chunk.split_at(end);
        // The tap looks at nothing in it, but has to see its end.
        self.tap.feed(remains, false, |_| Passage::Now.into());
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
