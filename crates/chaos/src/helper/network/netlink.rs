//! What the kernel is told of and asked about a network: a few messages of rtnetlink(7), made and read by hand.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::network::{Netem, PacketLoss, Packets};

// Of linux/netlink.h, linux/rtnetlink.h, linux/if_link.h and linux/pkt_sched.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_PKT64: u16 = 8;
const TCA_NETEM_DELAY_DIST: u16 = 2;
const TCA_NETEM_LOSS: u16 = 5;
const TCA_NETEM_LATENCY64: u16 = 10;
const TCA_NETEM_JITTER64: u16 = 11;
const NETEM_LOSS_GE: u16 = 2;
const TC_H_ROOT: u32 = 0xffff_ffff;

const HEADER_BYTES: usize = 16;
/// Behind which the attributes of a message about a queueing discipline are.
const TC_BYTES: usize = 20;
/// The loopback device has this number in every namespace.
const LOOPBACK: i32 = 1;
/// Of the two disciplines, and of the band of the first that the second is in.
const PRIO: u32 = 0x1_0000;
const SHAPED: u32 = PRIO + 2;
const NETEM: u32 = 0x2_0000;
/// What packets are of the second band: those of sockets with `IPTOS_LOWDELAY`, tc-prio(8).
const INTERACTIVE: usize = 6;
/// What Ethernet has, so that packets are as small as on a network.
const MTU_BYTES: u32 = 1500;
/// Packets that wait. What is under way is limited by those who send it, and what finds no room would count as lost.
const LIMIT: u32 = 1_000_000;
/// `NETEM_DIST_SCALE`, and how many different delays there are: a power of two, so that none is likelier.
const DIST_SCALE: i16 = 8192;
const DIST_SIZE: i16 = 4096;
/// What the kernel measures time in where it does not know nanoseconds: 64 of them.
const TICK_SHIFT: u32 = 6;

/// The network of this process's namespace.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

/// Which step the kernel refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) step: Step,
    pub(super) errno: Errno,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A socket to speak to the kernel by, and a device to work with.
    Device,
    /// The queueing discipline that tells what is shaped.
    Prio,
    /// The one that shapes.
    Netem,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Refused> {
        // Without a protocol it is that of routing.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
        socket.map(Self).map_err(Step::Device.refused())
    }

    /// Has packets of sockets with `IPTOS_LOWDELAY` over the loopback device shaped, and no others: so that a connection is
    /// there at once.
    pub(super) fn shape(&self, netem: &Netem) -> Result<(), Refused> {
        self.tell(Message::link(IFF_UP).with(IFLA_MTU, &MTU_BYTES.to_ne_bytes())).map_err(Step::Device.refused())?;
        // Before Linux 4.16 packets may be larger than that: what is sent at once is one.
        let _ = self.tell(Message::link(IFF_UP).with(IFLA_GSO_MAX_SEGS, &1_u32.to_ne_bytes()));
        let mut bands = [0_u8; 16];
        bands[INTERACTIVE] = 1;
        let options = [&2_i32.to_ne_bytes()[..], &bands].concat();
        self.tell(Message::qdisc(TC_H_ROOT, PRIO, "prio").with(TCA_OPTIONS, &options)).map_err(Step::Prio.refused())?;
        self.tell(Message::qdisc(SHAPED, NETEM, "netem").with(TCA_OPTIONS, &options_of(netem)))
            .map_err(Step::Netem.refused())
    }

    /// Takes the device down, and with it everything that waits.
    pub(super) fn let_go(&self) -> Result<(), Errno> {
        self.tell(Message::link(0))
    }

    /// What has become of the packets that were to be shaped.
    pub(super) fn packets(&self) -> io::Result<Packets> {
        let request = Message::tc(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP, TC_H_ROOT, 0);
        send(&self.0, &request.finished(), SendFlags::empty())?;
        let mut found = None;
        self.answers(|kind, body| {
            let of_netem = kind == RTM_NEWQDISC && u32_at(body, 8) == Some(NETEM);
            if of_netem {
                found = body.get(TC_BYTES..).and_then(packets);
            }
            kind != NLMSG_DONE
        })?;
        found.ok_or_else(|| io::Error::other("the kernel tells nothing of its packets"))
    }

    /// Tells the kernel something, and waits for its consent.
    fn tell(&self, message: Message) -> Result<(), Errno> {
        send(&self.0, &message.finished(), SendFlags::empty())?;
        // It answers before that returns.
        self.answers(|_, _| true)
    }

    /// Reads what the kernel answers, until it says that this is all, or `more` does.
    fn answers(&self, mut more: impl FnMut(u16, &[u8]) -> bool) -> Result<(), Errno> {
        let mut room = vec![0; 32 << 10];
        loop {
            let (read, _) = recv(&self.0, &mut room[..], RecvFlags::empty())?;
            let mut rest = room.get(..read).unwrap_or_default();
            while let Some(bytes) = u32_at(rest, 0).and_then(|length| usize::try_from(length).ok()) {
                let (Some(kind), Some(body)) = (u16_at(rest, 4), rest.get(HEADER_BYTES..bytes)) else { break };
                if kind == NLMSG_ERROR {
                    return match u32_at(body, 0).map_or(-1, u32::cast_signed) {
                        0 => Ok(()),
                        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
                    };
                }
                if !more(kind, body) {
                    return Ok(());
                }
                rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

impl Step {
    fn refused(self) -> impl FnOnce(Errno) -> Refused {
        move |errno| Refused { step: self, errno }
    }
}

/// The packets in the attributes of a queueing discipline.
fn packets(attributes: &[u8]) -> Option<Packets> {
    let stats = attribute(attributes, TCA_STATS2)?;
    let basic = attribute(stats, TCA_STATS_BASIC)?;
    let many = attribute(stats, TCA_STATS_PKT64).and_then(|count| Some(u64::from_ne_bytes(count.try_into().ok()?)));
    let queue = attribute(stats, TCA_STATS_QUEUE)?;
    Some(Packets { sent: many.or_else(|| u32_at(basic, 8).map(u64::from))?, dropped: u32_at(queue, 8)?.into() })
}

/// The value of the first attribute of this kind.
fn attribute(mut all: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (usize::from(u16_at(all, 0)?), u16_at(all, 2)?);
        let value = all.get(4..length)?;
        // The upper bits are flags.
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        all = all.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// As `struct tc_netem_qopt` and what follows it.
fn options_of(netem: &Netem) -> Vec<u8> {
    let nanos = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    let (delay, jitter) = (nanos(netem.delay), nanos(netem.jitter));
    let ticks = |nanos: i64| u32::try_from(nanos >> TICK_SHIFT).unwrap_or(u32::MAX);
    let share = if let PacketLoss::Share(share) = netem.loss { chance(share) } else { 0 };
    let mut options = Message::default();
    for field in [ticks(delay), LIMIT, share, 0, 0, ticks(jitter)] {
        options.0.extend(field.to_ne_bytes());
    }
    options = options.with(TCA_NETEM_LATENCY64, &delay.to_ne_bytes()).with(TCA_NETEM_JITTER64, &jitter.to_ne_bytes());
    if jitter > 0 {
        // Without a table it takes the remainder of 32 bits, in which what is small is likelier.
        options = options.with(TCA_NETEM_DELAY_DIST, &evenly().flat_map(i16::to_ne_bytes).collect::<Vec<_>>());
    }
    if let PacketLoss::Bursts { enter, leave } = netem.loss {
        // In the bad state all are lost, in the good one none.
        let model: Vec<u8> = [chance(enter), chance(leave), 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        options = options.with(TCA_NETEM_LOSS, &Message::default().with(NETEM_LOSS_GE, &model).0);
    }
    options.0
}

/// What the kernel multiplies the jitter by, in units of which [`DIST_SCALE`] are one: it draws from these, which are in the middle of
/// equal parts of all between less and more.
fn evenly() -> impl Iterator<Item = i16> {
    let part = 2 * DIST_SCALE / DIST_SIZE;
    (0..DIST_SIZE).map(move |at| at * part + part / 2 - DIST_SCALE)
}

/// A chance as the kernel has it.
fn chance(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * f64::from(u32::MAX)).round() as u32
}

/// A message, or what is in an attribute that has others in it.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut header = vec![0; HEADER_BYTES];
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(header)
    }

    /// The loopback device is up, or it is not.
    fn link(up: u32) -> Self {
        let mut message = Self::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK);
        message.0.extend([0; 4]);
        message.0.extend(LOOPBACK.to_ne_bytes());
        // What it is, and which bits of that are meant.
        message.0.extend(up.to_ne_bytes());
        message.0.extend(IFF_UP.to_ne_bytes());
        message
    }

    /// There is a queueing discipline of this kind.
    fn qdisc(parent: u32, handle: u32, kind: &str) -> Self {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        Self::tc(RTM_NEWQDISC, flags, parent, handle).with(TCA_KIND, &[kind.as_bytes(), &[0]].concat())
    }

    fn tc(kind: u16, flags: u16, parent: u32, handle: u32) -> Self {
        let mut message = Self::new(kind, flags);
        message.0.extend([0; 4]);
        message.0.extend(LOOPBACK.to_ne_bytes());
        for field in [handle, parent, 0] {
            message.0.extend(field.to_ne_bytes());
        }
        message
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finished(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(field) = self.0.get_mut(..4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_told_is_as_the_kernel_reads_it() {
        let netem = Netem {
            delay: Duration::from_millis(100),
            jitter: Duration::from_micros(64),
            loss: PacketLoss::Bursts { enter: 0.0, leave: 1.0 },
        };
        let options = options_of(&netem);
        let fields: Vec<_> = (0..6).map(|field| u32_at(&options, field * 4).unwrap()).collect();
        assert_eq!(fields, [1_562_500, LIMIT, 0, 0, 0, 1000], "in ticks");
        let attributes = &options[24..];
        assert_eq!(attribute(attributes, TCA_NETEM_LATENCY64), Some(&100_000_000_i64.to_ne_bytes()[..]));
        assert_eq!(attribute(attributes, TCA_NETEM_JITTER64), Some(&64_000_i64.to_ne_bytes()[..]));
        let model = attribute(attribute(attributes, TCA_NETEM_LOSS).unwrap(), NETEM_LOSS_GE).unwrap();
        assert_eq!((u32_at(model, 0), u32_at(model, 4)), (Some(0), Some(u32::MAX)));
        let share = options_of(&Netem { loss: PacketLoss::Share(0.5), ..Netem::default() });
        assert_eq!((u32_at(&share, 8), attribute(&share[24..], TCA_NETEM_LOSS)), (Some(u32::MAX / 2 + 1), None));
        let message = Message::qdisc(SHAPED, NETEM, "netem").finished();
        assert_eq!((u32_at(&message, 0), message.len() % 4), (Some(message.len() as u32), 0));
    }

    #[test]
    fn delays_are_as_likely_anywhere_between_the_least_and_the_most() {
        const SPREAD: Netem =
            Netem { delay: Duration::from_millis(1500), jitter: Duration::from_millis(1500), loss: PacketLoss::None };
        let options = options_of(&SPREAD);
        let table = attribute(&options[24..], TCA_NETEM_DELAY_DIST).unwrap();
        let table: Vec<_> = table.chunks(2).map(|entry| i64::from(i16::from_ne_bytes([entry[0], entry[1]]))).collect();
        // What it draws comes from 32 bits: none is likelier than another.
        assert!(table.len().is_power_of_two() && table.len() <= 16_384, "{}", table.len());
        // As the kernel has it (sch_netem.c): of the jitter, in units of which 8192 are all of it.
        let sigma = SPREAD.jitter.as_nanos() as i64;
        let drawn = |entry: &i64| {
            let part = (sigma % 8192) * entry;
            let rounded = if part >= 0 { part + 4096 } else { part - 4096 };
            rounded / 8192 + (sigma / 8192) * entry + SPREAD.delay.as_nanos() as i64
        };
        let delays: Vec<_> = table.iter().map(drawn).collect();
        let all = 3_000_000_000;
        assert_eq!(delays.iter().sum::<i64>() / delays.len() as i64, all / 2);
        for (at, delay) in delays.iter().enumerate() {
            let slot = all * at as i64 / delays.len() as i64..all * (at as i64 + 1) / delays.len() as i64 + 1;
            assert!(slot.contains(delay), "{at}: {delay} is not in {slot:?}");
        }
        let constant = options_of(&Netem { delay: SPREAD.delay, ..Netem::default() });
        assert_eq!(attribute(&constant[24..], TCA_NETEM_DELAY_DIST), None);
    }

    #[test]
    fn what_the_kernel_tells_is_read_or_left() {
        let stats = Message::default()
            .with(TCA_STATS_BASIC, &[&[9; 8][..], &7_u32.to_ne_bytes(), &[0; 4]].concat())
            .with(TCA_STATS_QUEUE, &[[1; 8].as_slice(), &3_u32.to_ne_bytes(), &[0; 8]].concat());
        let all = Message::default().with(TCA_KIND, b"netem\0").with(TCA_STATS2, &stats.0).0;
        assert_eq!(packets(&all), Some(Packets { sent: 7, dropped: 3 }));
        // Nothing is read beyond the end, and nothing goes on forever.
        for length in 0..all.len() {
            let _ = packets(&all[..length]);
        }
        assert_eq!(attribute(&[0; 64], TCA_KIND), None);
    }
}
