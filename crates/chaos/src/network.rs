//! A network with faults of its own: what its kernel is to do to packets, and who leads connections through it.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use humantime::format_duration;
use mcpscope_core::{FaultId, Ratio};
use serde::{Deserialize, Serialize};

use crate::Scenario;
use crate::fault::{Distribution, LossModel};
use crate::lease::{Lease, Member, Shared};
use crate::parameter::{ParameterError, Reader};

/// Connections whose packets are really delayed and lost.
pub trait Network: std::fmt::Debug + Send + Sync {
    /// Both ends of one more connection that leads through it, not blocking: what is written to one can be read from the
    /// other when the network lets it through. It takes up to two seconds.
    ///
    /// # Errors
    /// There is none to be had: the network is gone.
    fn pair(&self) -> io::Result<[TcpStream; 2]>;

    /// Whether it is there.
    fn is_up(&self) -> bool;
}

/// The packets of a network so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    /// Those that arrived, or were on their way for as long as they are delayed.
    pub sent: u64,
    /// Those that were lost.
    pub dropped: u64,
}

impl Packets {
    /// The share that was lost, 0..=1; none without packets.
    #[must_use]
    pub fn lost(&self) -> Option<f64> {
        let all = self.sent + self.dropped;
        (all > 0).then(|| self.dropped as f64 / all as f64)
    }
}

/// The way of a connection through the network of a fault, for as long as that is active.
#[derive(Clone, Debug)]
pub struct Detour {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) member: Member,
}

impl Detour {
    /// Which fault it is.
    #[must_use]
    pub fn fault(&self) -> FaultId {
        self.lease.id
    }

    /// When it is over at the latest.
    #[must_use]
    pub fn ends(&self) -> Instant {
        self.lease.expires_at
    }

    /// Whether it is open: the fault is active, and its network there. No lock, and nothing to wait for.
    #[must_use]
    pub fn is_open(&self, now: Instant) -> bool {
        self.lease.is_alive(&self.shared, now) && self.network.is_up()
    }

    /// Leads one more connection through it: [`Network::pair`], written down and counted.
    ///
    /// # Errors
    /// The network is gone.
    pub fn pair(&self) -> io::Result<[TcpStream; 2]> {
        self.lease.leads(&self.shared, self.member, Instant::now(), || self.network.pair())
    }
}

/// What the kernel's netem is to do to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Netem {
    /// How long each packet takes.
    pub(crate) delay: Duration,
    /// How much more or less, all of that equally likely.
    pub(crate) jitter: Duration,
    pub(crate) loss: PacketLoss,
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PacketLoss {
    #[default]
    None,
    /// Each with this chance.
    Share(f64),
    /// All while the state is bad. The chances to enter and to leave it, at each packet.
    Bursts { enter: f64, leave: f64 },
}

/// The value of the parameter `backend` that stands for it.
pub(crate) const NETEM: &str = "netem";

/// The largest difference between delays: on each side of the mean what the kernel keeps as that many nanoseconds, with a sign.
const SPREAD: Duration = Duration::from_nanos(2 * i32::MAX as u64);

/// What only messages have.
const OF_MESSAGES: [&str; 11] =
    ["direction", "kind", "what", "method", "tool", "nth", "every", "after", "max_hits", "order", "heal"];

impl Netem {
    /// What is asked for; none if it is to be done to messages.
    pub(crate) fn read(reader: &Reader<'_>) -> Result<Option<Self>, ParameterError> {
        if reader.choice("backend")? != Some(NETEM) {
            return Ok(None);
        }
        if let Some(name) = OF_MESSAGES.into_iter().find(|name| reader.is_given(name)) {
            let what = format!("{name} is about messages, and backend=netem about packets, which carry them both ways");
            return Err(reader.contradiction(what, format!("backend=message, or no {name}")));
        }
        if reader.choice("transport")? == Some("stdio") {
            let what = "backend=netem is about packets, and a pipe has none";
            return Err(reader.contradiction(what, "backend=message, or transport=http"));
        }
        if reader.scenario == Scenario::PacketLoss {
            let intensity = reader.share("intensity")?;
            let intensity = reader.required("intensity", intensity)?;
            let loss = match LossModel::read(reader, intensity)? {
                LossModel::Bernoulli => PacketLoss::Share(intensity.get()),
                // The kernel begins between two bursts, with a packet that arrives.
                _ if intensity == Ratio::ZERO || intensity == Ratio::ONE => PacketLoss::Share(intensity.get()),
                LossModel::GilbertElliott { enter, leave } => PacketLoss::Bursts { enter, leave },
            };
            return Ok(Some(Self { loss, ..Self::default() }));
        }
        if reader.is_given("intensity") {
            let what = "intensity is given, but backend=netem delays all packets";
            return Err(reader.contradiction(what, "backend=message, or no intensity"));
        }
        let (delay, jitter) = match Distribution::read(reader)? {
            Distribution::Constant(delay) => (delay, Duration::ZERO),
            Distribution::Uniform { min, max } if max - min > SPREAD => {
                let what = format!(
                    "max is {} more than min, over which the kernel spreads no delays",
                    format_duration(max - min)
                );
                return Err(reader.contradiction(what, "max up to 4.29 s more than min, or backend=message"));
            }
            Distribution::Uniform { min, max } => ((min + max) / 2, (max - min) / 2),
            _ => {
                let what = "backend=netem has no delays of this distribution";
                return Err(reader.contradiction(what, "distribution=constant or uniform, or backend=message"));
            }
        };
        Ok(Some(Self { delay, jitter, ..Self::default() }))
    }

    /// The share that it came to; none without packets.
    pub(crate) fn achieved(&self, packets: Packets) -> Option<f64> {
        let lost = packets.lost()?;
        // All of them are delayed.
        Some(if self.loss == PacketLoss::None { 1.0 } else { lost })
    }

    /// The share of the packets that is asked for, 0..=1.
    pub(crate) fn intensity(&self) -> Ratio {
        match self.loss {
            PacketLoss::None => Ratio::ONE,
            PacketLoss::Share(share) => Ratio::new(share).unwrap_or(Ratio::ONE),
            PacketLoss::Bursts { enter, leave } => Ratio::new(enter / (enter + leave)).unwrap_or(Ratio::ONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Parameters;

    fn read(scenario: Scenario, pairs: &[&str]) -> Result<Option<Netem>, ParameterError> {
        let parameters = Parameters::from_pairs(pairs.iter().copied()).unwrap();
        Netem::read(&Reader::new(scenario, &parameters)?)
    }

    #[test]
    fn what_the_kernel_can_do_is_asked_of_it() {
        let ms = Duration::from_millis;
        for (scenario, pairs, expected) in [
            (Scenario::PacketLoss, &["intensity=0.2"][..], None),
            (
                Scenario::PacketLoss,
                &["backend=netem", "intensity=0.2"],
                Some(Netem { loss: PacketLoss::Share(0.2), ..Netem::default() }),
            ),
            (
                Scenario::PacketLoss,
                &["backend=netem", "intensity=0.5", "model=gilbert_elliott", "burst=4"],
                Some(Netem { loss: PacketLoss::Bursts { enter: 0.25, leave: 0.25 }, ..Netem::default() }),
            ),
            (
                Scenario::LatencyInjection,
                &["backend=netem", "delay=70ms"],
                Some(Netem { delay: ms(70), ..Netem::default() }),
            ),
            (
                Scenario::LatencyInjection,
                &["backend=netem", "min=10ms", "max=30ms"],
                Some(Netem { delay: ms(20), jitter: ms(10), ..Netem::default() }),
            ),
            (
                Scenario::LatencyInjection,
                &["backend=netem", "min=1s", "max=5294ms"],
                Some(Netem { delay: ms(3147), jitter: ms(2147), ..Netem::default() }),
            ),
        ] {
            assert_eq!(read(scenario, pairs).unwrap(), expected, "{pairs:?}");
        }
        // Bursts begin with a packet that arrives.
        for intensity in [0.0, 1.0] {
            let all = &format!("intensity={intensity}");
            let loss =
                read(Scenario::PacketLoss, &["backend=netem", all, "model=gilbert_elliott"]).unwrap().unwrap().loss;
            assert_eq!(loss, PacketLoss::Share(intensity));
        }
        let bursts = read(Scenario::PacketLoss, &["backend=netem", "intensity=0.2", "model=gilbert_elliott"]);
        assert!((bursts.unwrap().unwrap().intensity().get() - 0.2).abs() < 1e-9);
    }

    #[test]
    fn what_packets_have_nothing_to_do_with_is_refused() {
        for name in OF_MESSAGES {
            for scenario in [Scenario::PacketLoss, Scenario::LatencyInjection] {
                let Some(parameter) = scenario.parameters().find(|parameter| parameter.name == name) else { continue };
                let value = if let crate::Kind::Choice(words) = parameter.kind { words[0] } else { "1" };
                let error = read(scenario, &["backend=netem", &format!("{name}={value}")]).unwrap_err().to_string();
                assert!(error.ends_with(&format!("expected backend=message, or no {name}")), "{error}");
            }
        }
        for (scenario, given, expected) in [
            (Scenario::PacketLoss, "transport=stdio", "a pipe has none: expected backend=message, or transport=http"),
            (Scenario::LatencyInjection, "intensity=0.5", "all packets: expected backend=message, or no intensity"),
            (
                Scenario::LatencyInjection,
                "distribution=pareto",
                "expected distribution=constant or uniform, or backend",
            ),
            (Scenario::LatencyInjection, "max=5s", "expected max up to 4.29 s more than min, or backend=message"),
        ] {
            let error = read(scenario, &["backend=netem", given]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_lost_is_a_share_of_what_was_sent_and_lost() {
        assert_eq!(Packets::default().lost(), None);
        assert_eq!(Packets { sent: 3, dropped: 1 }.lost(), Some(0.25));
    }
}
