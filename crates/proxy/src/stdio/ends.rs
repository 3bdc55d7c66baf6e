//! The two threads of a relay: each holds the client's end of one direction, and gets one child after another.

use std::io::{self, IoSlice, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread;

use mcpscope_core::Direction;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc::UnboundedSender;

use super::observe::Watch;
use super::pump::{End, Pump, Side, retried, write_all};

/// What a thread is to do.
#[derive(Debug)]
pub(super) enum Order {
    /// There is a child: its input or its output.
    Serve(OwnedFd),
    /// Bytes of our own: for the child from the one thread, for the client from the other, in a line of their own.
    Write(Vec<u8>),
    /// Pass on what the client writes.
    Flow,
    /// The child is gone.
    Stop,
    /// There will be no other: look at what waits for it.
    GiveUp,
}

/// What a thread has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The client writes no more.
    InputEnded,
    /// Nothing of what the client writes goes on until there is another child.
    Parked,
    /// What waited for another child was looked at.
    GivenUp,
    /// All that the child wrote is passed on; or the client reads no more.
    OutputEnded { client_gone: bool },
    /// What was to be written to the client is.
    Written,
    /// The child has answered the replayed greeting.
    Greeted,
}

/// Gives orders to a thread. Dropped, the thread ends.
#[derive(Debug)]
pub(super) struct Orders {
    orders: mpsc::Sender<Order>,
    /// A byte for each order: a thread that waits for descriptors has to hear of it.
    wake: PipeWriter,
}

impl Orders {
    pub(super) fn give(&mut self, order: Order) {
        // A thread that has ended needs no orders.
        if self.orders.send(order).is_ok() {
            let _ = self.wake.write_all(&[0]);
        }
    }
}

/// Where a thread gets its orders.
#[derive(Debug)]
struct Ordered {
    orders: mpsc::Receiver<Order>,
    wake: PipeReader,
}

impl Ordered {
    fn next(&self) -> Option<Order> {
        (&self.wake).read_exact(&mut [0]).ok()?;
        self.orders.recv().ok()
    }
}

fn orders() -> io::Result<(Orders, Ordered)> {
    let (sender, orders) = mpsc::channel();
    let (woken, wake) = io::pipe()?;
    Ok((Orders { orders: sender, wake }, Ordered { orders, wake: woken }))
}

/// What a thread shares with whoever gives it orders.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    pub(super) watch: Option<Arc<Watch>>,
    /// Whether there will be another child after one that crashed; if not, the client's end is closed with the child's.
    pub(super) supervised: bool,
    pub(super) reports: UnboundedSender<Report>,
}

impl Desk {
    fn side(&self, direction: Direction) -> Option<Side<'_>> {
        self.watch.as_ref().map(|watch| Side::new(watch, direction))
    }

    fn report(&self, report: Report) {
        // Nobody listens any more once the relay has ended.
        let _ = self.reports.send(report);
    }
}

/// Starts the thread that reads from the client.
pub(super) fn start_input(input: OwnedFd, desk: Desk) -> io::Result<Orders> {
    let (orders, ordered) = orders()?;
    thread::Builder::new().name("mcpscope-in".into()).spawn(move || Input { input, ordered }.run(&desk))?;
    Ok(orders)
}

/// Starts the thread that writes to the client.
pub(super) fn start_output(output: OwnedFd, desk: Desk) -> io::Result<Orders> {
    let (orders, ordered) = orders()?;
    thread::Builder::new().name("mcpscope-out".into()).spawn(move || write_to_client(output, &ordered, &desk))?;
    Ok(orders)
}

struct Input {
    input: OwnedFd,
    ordered: Ordered,
}

/// How the client is watched while nothing is read from it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watched {
    No,
    /// What it has written is for the server that is there, and its end comes after it.
    WhileEmpty,
    /// There is no server, and it needs none if it leaves.
    ForItsEnd,
}

/// What the thread that reads from the client wakes up for while it does not read.
enum Woken {
    Order(Order),
    /// The client has closed its end.
    InputEnded,
    /// Nobody gives orders any more.
    Over,
}

impl Input {
    fn run(self, desk: &Desk) {
        let direction = Direction::ToServer;
        let mut side = desk.side(direction);
        let mut server = None;
        loop {
            let watched = match &server {
                _ if !desk.supervised => Watched::No,
                Some(_) => Watched::WhileEmpty,
                None => Watched::ForItsEnd,
            };
            match self.wait(watched, &mut side) {
                Woken::Order(Order::Serve(stdin)) => server = Some(stdin),
                Woken::Order(Order::Write(bytes)) => {
                    // Of a child that reads no more we hear by its end.
                    let _ = server.as_ref().map(|server| write_all(server, &mut [IoSlice::new(&bytes)]));
                }
                Woken::Order(Order::Stop) => {
                    server = None;
                    side.iter_mut().for_each(Side::start_over);
                    desk.report(Report::Parked);
                }
                Woken::Order(Order::Flow) => {
                    let Some(to) = &server else { continue };
                    let (from, stopped, drains) = (&self.input, &self.ordered.wake, !desk.supervised);
                    let pump = Pump { from, to, stopped, drains, direction };
                    let end = pump.run(&mut side);
                    if end != End::Input && desk.supervised {
                        continue;
                    }
                    side.iter_mut().for_each(|side| pump.end(side));
                    // Before the child learns of it, by the end of its input.
                    return desk.report(Report::InputEnded);
                }
                Woken::Order(Order::GiveUp) => {
                    // It ends without another word: what comes from now on is for nobody.
                    side.iter_mut().for_each(|side| side.take_ahead(&self.input));
                    return desk.report(Report::GivenUp);
                }
                Woken::InputEnded => {
                    // What is left is for no server, but is to be answered.
                    side.iter_mut().for_each(|side| side.take_rest(&self.input));
                    return desk.report(Report::InputEnded);
                }
                Woken::Over => return,
            }
        }
    }

    /// Waits for an order. A client that leaves in the meantime is seen, what it writes is read ahead: for the server that is
    /// there, or else for the next, if the client stays.
    fn wait(&self, watched: Watched, side: &mut Option<Side<'_>>) -> Woken {
        let mut wanted = PollFlags::IN;
        let has_none = |side: &Option<Side<'_>>| side.as_ref().is_none_or(|side| side.ahead.is_empty());
        loop {
            let mut fds = [PollFd::new(&self.ordered.wake, PollFlags::IN), PollFd::new(&self.input, wanted)];
            let fds = if watched == Watched::No { fds.split_at_mut(1).0 } else { &mut fds };
            if retried(|| poll(fds, None)).is_err() {
                return Woken::Over;
            }
            let seen: Vec<_> = fds.iter().map(PollFd::revents).collect();
            if seen.first().is_some_and(|order| !order.is_empty()) {
                return self.ordered.next().map_or(Woken::Over, Woken::Order);
            }
            let Some(input) = seen.get(1).filter(|input| !input.is_empty()) else { continue };
            let has_left = input.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            if has_left && watched == Watched::ForItsEnd {
                return Woken::InputEnded;
            }
            match rustix::io::ioctl_fionread(&self.input) {
                Ok(0) if watched == Watched::ForItsEnd || has_none(side) => {
                    return Woken::InputEnded;
                }
                Ok(there) => {
                    let read = side.as_mut().map_or(Ok(0), |side| side.ahead.read(&self.input, there));
                    if read.is_ok_and(|read| read > 0) {
                        continue;
                    }
                }
                Err(_) => {}
            }
            // It is told of its end even so.
            wanted = PollFlags::empty();
            if watched == Watched::WhileEmpty {
                return self.wait(Watched::No, side);
            }
        }
    }
}

fn write_to_client(output: OwnedFd, ordered: &Ordered, desk: &Desk) {
    let direction = Direction::ToClient;
    let mut mid_line = false;
    while let Some(order) = ordered.next() {
        match order {
            Order::Serve(stdout) => {
                let mut side = desk.side(direction);
                let pump = Pump { from: &stdout, to: &output, stopped: &ordered.wake, drains: true, direction };
                let client_gone = pump.run(&mut side) == End::NobodyReads;
                if let Some(side) = &mut side {
                    pump.end(side);
                    mid_line = side.mid_line;
                }
                drop((side, stdout));
                let report = Report::OutputEnded { client_gone };
                if !desk.supervised {
                    // The end of the child's output is that of ours.
                    drop(output);
                    return desk.report(report);
                }
                desk.report(report);
            }
            Order::Write(bytes) => {
                let line_feed: &[u8] = if mid_line { b"\n" } else { b"" };
                // A client that reads no more is seen by the next pump.
                let _ = write_all(&output, &mut [IoSlice::new(line_feed), IoSlice::new(&bytes)]);
                mid_line = false;
                desk.report(Report::Written);
            }
            Order::Flow | Order::Stop | Order::GiveUp => {}
        }
    }
}
