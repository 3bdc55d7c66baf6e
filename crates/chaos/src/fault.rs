//! The faults with their parameters, and what each does to a message.

use std::f64::consts::TAU;
use std::time::Duration;

use mcpscope_core::{Answer, Break, Change, Effect, OnEnd, Order, Ratio, Release, ToolsList};

use crate::Scenario;
use crate::catalogue::LONGEST_MS;
use crate::draw::{Draws, Key};
use crate::network::Netem;
use crate::parameter::{Kind, Parameter, ParameterError, Reader};

/// What an experiment injects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    Latency {
        intensity: Ratio,
        distribution: Distribution,
        order: Order,
        heal: OnEnd,
    },
    Partition(Partition),
    Loss {
        intensity: Ratio,
        model: LossModel,
    },
    /// The same effect on every message that is chosen.
    Fixed {
        probability: Ratio,
        effect: Effect,
    },
    /// The kernel does it to packets.
    Network(Netem),
    /// A [`ChaosTarget`](crate::ChaosTarget) does it.
    OutOfProcess,
}

/// How long a delay is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distribution {
    Uniform {
        min: Duration,
        max: Duration,
    },
    Constant(Duration),
    Normal {
        mean: Duration,
        stddev: Duration,
    },
    /// Mean and deviation are those of the delay, not of its logarithm.
    Lognormal {
        mean: Duration,
        stddev: Duration,
    },
    Pareto {
        scale: Duration,
        shape: f64,
    },
    Exponential {
        mean: Duration,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Partition {
    /// Share of the connections.
    pub(crate) intensity: Ratio,
    mode: Mode,
    heal: OnEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Silent,
    RefuseNew,
    Reset,
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LossModel {
    Bernoulli,
    /// Messages are lost while the state is bad. The chances to enter and to leave it, at each message of a direction.
    GilbertElliott {
        enter: f64,
        leave: f64,
    },
}

/// What a fault remembers of one direction of a connection: a function of the draws until the last ordinal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    bad: bool,
}

/// What was drawn for one message, and what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    /// The number in 0..1 that decided.
    pub(crate) draw: f64,
    pub(crate) effect: Option<Effect>,
}

impl Fault {
    pub(crate) fn read(reader: &Reader<'_>) -> Result<Self, ParameterError> {
        let share = |name| reader.share(name).and_then(|share| reader.required(name, share));
        if let Some(netem) = Netem::read(reader)? {
            return Ok(Self::Network(netem));
        }
        match reader.scenario {
            Scenario::LatencyInjection => {
                let order = match reader.choice("order")? {
                    Some("independent") => Order::Independent,
                    _ => Order::Preserve,
                };
                let (intensity, distribution) = (share("intensity")?, Distribution::read(reader)?);
                Ok(Self::Latency { intensity, distribution, order, heal: heal(reader)? })
            }
            Scenario::NetworkPartition => Partition::read(reader).map(Self::Partition),
            Scenario::PacketLoss => {
                let intensity = share("intensity")?;
                Ok(Self::Loss { intensity, model: LossModel::read(reader, intensity)? })
            }
            scenario if scenario.is_out_of_process() => check_only(reader).map(|()| Self::OutOfProcess),
            _ => Ok(Self::Fixed { probability: share("probability")?, effect: fixed(reader)? }),
        }
    }

    /// The share of the messages that match which it hits in the long run, once their connection is chosen.
    pub(crate) fn intensity(&self) -> Ratio {
        match self {
            Self::Latency { intensity, .. } | Self::Loss { intensity, .. } => *intensity,
            Self::Fixed { probability, .. } => *probability,
            Self::Network(netem) => netem.intensity(),
            Self::Partition(_) | Self::OutOfProcess => Ratio::ONE,
        }
    }

    /// The share of the connections that it is about.
    pub(crate) fn connections(&self) -> Ratio {
        if let Self::Partition(partition) = self { partition.intensity } else { Ratio::ONE }
    }

    /// What becomes of a message that matches: a function of its arguments alone.
    pub(crate) fn drawn(&self, key: Key, ordinal: u64, chain: Chain) -> Drawn {
        let mut draws = key.block(ordinal);
        let draw = draws.unit();
        let chosen = |share: Ratio| draw < share.get();
        let effect = match self {
            Self::Latency { intensity, distribution, order, heal } => {
                let delay = || Effect::Delay { by: distribution.sample(&mut draws), order: *order, on_end: *heal };
                chosen(*intensity).then(delay)
            }
            Self::Partition(partition) => Some(partition.effect()),
            Self::Loss { intensity, model: LossModel::Bernoulli } => chosen(*intensity).then_some(Effect::Drop),
            Self::Loss { model: LossModel::GilbertElliott { .. }, .. } => chain.bad.then_some(Effect::Drop),
            Self::Fixed { probability, effect } => chosen(*probability).then(|| effect.clone()),
            Self::Network(_) | Self::OutOfProcess => None,
        };
        Drawn { draw, effect }
    }

    /// The state at a message, from that at the one before, whether or not it matches.
    pub(crate) fn advanced(&self, key: Key, ordinal: u64, before: Chain) -> Chain {
        let Self::Loss { intensity, model: LossModel::GilbertElliott { enter, leave } } = self else { return before };
        // The fourth number of the block: those before are for the effect.
        let mut draws = key.block(ordinal);
        let draw = std::iter::repeat_with(|| draws.unit()).nth(3).unwrap_or_default();
        let bad = match (ordinal, before.bad) {
            (0, _) => draw < intensity.get(),
            (_, false) => draw < *enter,
            (_, true) => draw >= *leave,
        };
        Chain { bad }
    }

    /// What happens to a chosen connection as a whole, also if nothing is sent on it.
    pub(crate) fn on_connection(&self, is_new: bool) -> Option<Effect> {
        match self {
            Self::Partition(Partition { mode: Mode::RefuseNew, .. }) if is_new => Some(Effect::Break(Break::Refuse)),
            Self::Partition(Partition { mode: Mode::Reset, .. }) => Some(Effect::Break(Break::Reset)),
            Self::Partition(Partition { mode: Mode::HalfOpen, .. }) => Some(Effect::Break(Break::HalfOpen)),
            _ => None,
        }
    }
}

impl Partition {
    fn read(reader: &Reader<'_>) -> Result<Self, ParameterError> {
        let mode = match reader.choice("mode")? {
            Some("refuse_new") => Mode::RefuseNew,
            Some("reset") => Mode::Reset,
            Some("half_open") => Mode::HalfOpen,
            _ => Mode::Silent,
        };
        if mode != Mode::Silent && reader.choice("transport")? == Some("stdio") {
            let what = "a stdio connection can be neither refused nor reset nor half open";
            return Err(reader.contradiction(what, "mode=silent, or transport=http"));
        }
        if mode != Mode::Silent && matches!(reader.choice("direction")?, Some("to_server" | "to_client")) {
            let what = "direction is given, but a connection is refused, reset or half open as a whole";
            return Err(reader.contradiction(what, "mode=silent, or direction=both"));
        }
        let intensity = reader.share("intensity")?;
        Ok(Self { intensity: reader.required("intensity", intensity)?, mode, heal: heal(reader)? })
    }

    /// Whether it can be done to this transport.
    pub(crate) fn is_for_http_only(&self) -> bool {
        self.mode != Mode::Silent
    }

    const fn effect(&self) -> Effect {
        match (self.mode, self.heal) {
            (Mode::Reset, _) => Effect::Break(Break::Reset),
            (Mode::HalfOpen, _) => Effect::Break(Break::HalfOpen),
            (Mode::Silent | Mode::RefuseNew, OnEnd::Drop) => Effect::Drop,
            (Mode::Silent | Mode::RefuseNew, OnEnd::Deliver) => {
                Effect::Hold { until: Release::FaultEnd, on_end: OnEnd::Deliver }
            }
        }
    }
}

impl LossModel {
    pub(crate) fn read(reader: &Reader<'_>, intensity: Ratio) -> Result<Self, ParameterError> {
        if reader.choice("model")? != Some("gilbert_elliott") {
            if reader.is_given("burst") {
                return Err(reader.contradiction("burst is given", "model=gilbert_elliott, or no burst"));
            }
            return Ok(Self::Bernoulli);
        }
        let burst = reader.number("burst")?;
        let leave = 1.0 / reader.required("burst", burst)?;
        let lost = intensity.get();
        if lost >= 1.0 {
            return Ok(Self::GilbertElliott { enter: 1.0, leave: 0.0 });
        }
        // The share of the time in the bad state is enter / (enter + leave).
        let enter = leave * lost / (1.0 - lost);
        if enter > 1.0 {
            let most = 1.0 / (1.0 + leave);
            let what = format!("bursts of {:.1} on average cannot make up {lost} of all", 1.0 / leave);
            return Err(reader.contradiction(what, format!("intensity up to {most:.3}, or a longer burst")));
        }
        Ok(Self::GilbertElliott { enter, leave })
    }
}

/// What becomes of what is held at the end.
fn heal(reader: &Reader<'_>) -> Result<OnEnd, ParameterError> {
    Ok(if reader.choice("heal")? == Some("drop") { OnEnd::Drop } else { OnEnd::Deliver })
}

/// Checks the values of a fault that is carried out elsewhere, where they are read.
fn check_only(reader: &Reader<'_>) -> Result<(), ParameterError> {
    for Parameter { name, kind, .. } in reader.scenario.parameters() {
        match kind {
            Kind::Duration { .. } => drop(reader.duration(name)?),
            Kind::Share => drop(reader.share(name)?),
            Kind::Number { .. } => drop(reader.number(name)?),
            Kind::Whole { .. } => drop(reader.whole(name)?),
            Kind::Size { .. } => drop(reader.size(name)?),
            Kind::Choice(_) => drop(reader.choice(name)?),
            Kind::Text => drop(reader.text(name)?),
        }
    }
    if reader.is_given("size") && reader.is_given("share") {
        return Err(reader.contradiction("both size and share are given", "one of them"));
    }
    if reader.choice("cgroup")? == Some("own") && reader.is_given("target_processes") {
        return Err(reader.contradiction("target_processes is given with cgroup=own", "cgroup=target"));
    }
    Ok(())
}

/// Which parameters belong to which distribution.
const SHAPES: [(&str, &[&str]); 6] = [
    ("uniform", &["min", "max"]),
    ("constant", &["delay"]),
    ("normal", &["mean", "stddev"]),
    ("lognormal", &["mean", "stddev"]),
    ("pareto", &["scale", "shape"]),
    ("exponential", &["mean"]),
];

impl Distribution {
    pub(crate) fn read(reader: &Reader<'_>) -> Result<Self, ParameterError> {
        // `delay=300ms` alone says enough.
        let implied = (!reader.is_given("distribution") && reader.is_given("delay")).then_some("constant");
        let name = implied.or(reader.choice("distribution")?).unwrap_or("uniform");
        let own = SHAPES.iter().find(|(shape, _)| *shape == name).map_or(&[][..], |(_, own)| own);
        let mut all = SHAPES.iter().flat_map(|(_, parameters)| *parameters);
        if let Some(foreign) = all.find(|parameter| reader.is_given(parameter) && !own.contains(parameter)) {
            let what = format!("{foreign} does not belong to distribution={name}");
            return Err(reader.contradiction(what, own.join(", ")));
        }
        let duration = |name| reader.duration(name).and_then(|duration| reader.required(name, duration));
        match name {
            "constant" => Ok(Self::Constant(duration("delay")?)),
            "normal" => Ok(Self::Normal { mean: duration("mean")?, stddev: duration("stddev")? }),
            "lognormal" => {
                let (mean, stddev) = (duration("mean")?, duration("stddev")?);
                if mean.is_zero() {
                    return Err(reader.bad("mean", "more than 0s with distribution=lognormal"));
                }
                Ok(Self::Lognormal { mean, stddev })
            }
            "pareto" => {
                let shape = reader.number("shape")?;
                Ok(Self::Pareto { scale: duration("scale")?, shape: reader.required("shape", shape)? })
            }
            "exponential" => Ok(Self::Exponential { mean: duration("mean")? }),
            _ => {
                let (min, max) = (duration("min")?, duration("max")?);
                if min > max {
                    let what = format!("min={} is more than max", humantime::format_duration(min));
                    return Err(reader.contradiction(what, format!("min up to {}", humantime::format_duration(max))));
                }
                Ok(Self::Uniform { min, max })
            }
        }
    }

    /// A delay, in whole microseconds; never less than nothing, never longer than an experiment may be.
    fn sample(self, draws: &mut Draws) -> Duration {
        let (first, second) = (draws.unit(), draws.unit());
        let standard_normal = || (-2.0 * (1.0 - first).ln()).sqrt() * (TAU * second).cos();
        let seconds = match self {
            Self::Constant(delay) => return delay,
            Self::Uniform { min, max } => min.as_secs_f64() + first * (max - min).as_secs_f64(),
            Self::Normal { mean, stddev } => mean.as_secs_f64() + stddev.as_secs_f64() * standard_normal(),
            Self::Lognormal { mean, stddev } => {
                let (mean, stddev) = (mean.as_secs_f64(), stddev.as_secs_f64());
                let variance = (stddev / mean).powi(2).ln_1p();
                (mean.ln() - variance / 2.0 + variance.sqrt() * standard_normal()).exp()
            }
            Self::Pareto { scale, shape } => scale.as_secs_f64() * (1.0 - first).powf(-1.0 / shape),
            Self::Exponential { mean } => -mean.as_secs_f64() * (1.0 - first).ln(),
        };
        let longest = LONGEST_MS as f64 * 1e3;
        Duration::from_micros((seconds * 1e6).clamp(0.0, longest).round() as u64)
    }
}

fn fixed(reader: &Reader<'_>) -> Result<Effect, ParameterError> {
    let whole = |name| reader.whole(name).and_then(|whole| reader.required(name, whole));
    let text = |name| reader.text(name).and_then(|text| reader.required(name, text)).map(String::into_boxed_str);
    let held = |until| Effect::Hold { until, on_end: OnEnd::Deliver };
    Ok(match reader.scenario {
        Scenario::Hang => Effect::Hold { until: Release::FaultEnd, on_end: OnEnd::Deliver },
        Scenario::LateResponseAfterCancel => held(Release::Cancelled),
        Scenario::DuplicateResponse => Effect::Duplicate,
        Scenario::WrongId => Effect::Change(Change::WrongId),
        Scenario::SchemaViolation => Effect::Change(Change::Schema),
        Scenario::MalformedJson => Effect::Change(Change::MalformedJson),
        Scenario::StdoutNoise => Effect::Change(Change::Noise),
        Scenario::HeaderMismatch => Effect::Change(Change::HeaderMismatch),
        Scenario::StreamBreak => Effect::Break(Break::Stream),
        Scenario::StaleSession => Effect::Answer(Answer::StaleSession),
        Scenario::InputRequiredLoop => Effect::Answer(Answer::InputRequired),
        Scenario::VersionReject => Effect::Answer(Answer::VersionReject),
        Scenario::Truncated => {
            let keep = reader.share("keep")?;
            let keep = reader.required("keep", keep)?;
            if keep >= Ratio::ONE {
                return Err(reader.bad("keep", "a share from 0, and less than 1"));
            }
            Effect::Change(Change::Truncate { keep })
        }
        Scenario::Oversize => {
            let bytes = reader.size("bytes")?;
            Effect::Change(Change::Oversize { bytes: reader.required("bytes", bytes)? })
        }
        Scenario::SlowStream => {
            let rate = u32::try_from(whole("bytes_per_second")?).unwrap_or(u32::MAX);
            Effect::Slow { bytes_per_second: rate }
        }
        Scenario::ToolsListFlap => Effect::Change(Change::ToolsList(match reader.choice("change")? {
            Some("rename") => ToolsList::Rename,
            Some("reorder") => ToolsList::Reorder,
            _ => ToolsList::Drop,
        })),
        Scenario::RpcError => Effect::Answer(Answer::RpcError { code: whole("code")?, message: text("message")? }),
        Scenario::ToolError => Effect::Answer(Answer::ToolError { message: text("message")? }),
        Scenario::HttpStatus => {
            let status = u16::try_from(whole("status")?).unwrap_or(u16::MAX);
            let retry_after = reader.duration("retry_after")?;
            if retry_after.is_some() && !matches!(status, 429 | 503) {
                let what = format!("retry_after says nothing with status={status}");
                return Err(reader.contradiction(what, "status=429 or status=503"));
            }
            Effect::Answer(Answer::HttpStatus { status, retry_after })
        }
        // Those of whole messages; the others have been read by now.
        _ => Effect::Drop,
    })
}

#[cfg(test)]
mod tests {
    use mcpscope_core::Direction;

    use super::*;
    use crate::Parameters;

    fn fault(scenario: Scenario, pairs: &[&str]) -> Result<Fault, ParameterError> {
        let parameters = Parameters::from_pairs(pairs.iter().copied()).unwrap();
        Fault::read(&Reader::new(scenario, &parameters)?)
    }

    fn key() -> Key {
        Key::messages(3, Scenario::LatencyInjection, 0, Direction::ToServer)
    }

    fn drawn(fault: &Fault, messages: u64) -> Vec<Option<Effect>> {
        let mut chain = Chain::default();
        let one = |ordinal| {
            chain = fault.advanced(key(), ordinal, chain);
            fault.drawn(key(), ordinal, chain).effect
        };
        (0..messages).map(one).collect()
    }

    fn delays(pairs: &[&str]) -> Vec<f64> {
        let seconds = |effect| match effect {
            Some(Effect::Delay { by, .. }) => by.as_secs_f64(),
            other => panic!("{other:?}"),
        };
        let fault = fault(Scenario::LatencyInjection, pairs).unwrap();
        drawn(&fault, 10_000).into_iter().map(seconds).collect()
    }

    #[track_caller]
    fn check_moments(pairs: &[&str], mean: f64, stddev: f64, tolerance: f64) {
        let delays = delays(pairs);
        let count = delays.len() as f64;
        let average = delays.iter().sum::<f64>() / count;
        let deviation = (delays.iter().map(|delay| (delay - average).powi(2)).sum::<f64>() / count).sqrt();
        assert!((average / mean - 1.0).abs() < tolerance, "{pairs:?}: mean {average}, not {mean}");
        assert!((deviation - stddev).abs() < tolerance * mean, "{pairs:?}: deviation {deviation}, not {stddev}");
    }

    #[test]
    fn delays_are_distributed_as_asked_for() {
        check_moments(&["delay=300ms"], 0.3, 0.0, 1e-9);
        check_moments(&[], 0.5, 1.0 / 12_f64.sqrt(), 0.02);
        check_moments(&["distribution=uniform", "min=100ms", "max=300ms"], 0.2, 0.2 / 12_f64.sqrt(), 0.02);
        check_moments(&["distribution=normal", "mean=1s", "stddev=100ms"], 1.0, 0.1, 0.02);
        check_moments(&["distribution=lognormal", "mean=1s", "stddev=500ms"], 1.0, 0.5, 0.04);
        check_moments(&["distribution=exponential", "mean=200ms"], 0.2, 0.2, 0.05);
        // Mean a/(a-1) and deviation sqrt(a/((a-1)^2 (a-2))) of the scale, with a = 4.
        check_moments(&["distribution=pareto", "scale=1s", "shape=4"], 4.0 / 3.0, (4.0_f64 / 18.0).sqrt(), 0.05);
    }

    #[test]
    fn delays_are_never_negative_nor_endless() {
        let normal = delays(&["distribution=normal", "mean=10ms", "stddev=1s"]);
        assert!(normal.contains(&0.0));
        let pareto = delays(&["distribution=pareto", "scale=10s", "shape=0.1"]);
        assert!(pareto.iter().all(|delay| *delay <= 600.0) && pareto.contains(&600.0));
    }

    #[test]
    fn intensities_0_and_1_are_exact() {
        for scenario in [Scenario::LatencyInjection, Scenario::PacketLoss] {
            let hits = |pairs: &[&str]| {
                drawn(&fault(scenario, pairs).unwrap(), 5000).iter().filter(|effect| effect.is_some()).count()
            };
            assert_eq!((hits(&["intensity=0"]), hits(&["intensity=1"])), (0, 5000), "{scenario}");
        }
        let bursts = |pairs: &[&str]| {
            let fault = fault(Scenario::PacketLoss, &[&["model=gilbert_elliott"], pairs].concat()).unwrap();
            drawn(&fault, 5000).iter().filter(|effect| effect.is_some()).count()
        };
        assert_eq!((bursts(&["intensity=0"]), bursts(&["intensity=1"])), (0, 5000));
    }

    #[test]
    fn a_share_of_the_messages_is_lost_alone_or_in_bursts() {
        let runs = |pairs: &[&str]| {
            let lost: Vec<_> =
                drawn(&fault(Scenario::PacketLoss, pairs).unwrap(), 40_000).iter().map(Option::is_some).collect();
            let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
            let count = lost.iter().filter(|lost| **lost).count();
            (count as f64 / 4e4, count as f64 / bursts as f64)
        };
        let (share, length) = runs(&["intensity=0.2"]);
        assert!((share - 0.2).abs() < 0.01 && (length - 1.25).abs() < 0.05, "{share} {length}");
        let (share, length) = runs(&["intensity=0.2", "model=gilbert_elliott", "burst=8"]);
        assert!((share - 0.2).abs() < 0.02 && (length - 8.0).abs() < 0.5, "{share} {length}");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (scenario, pairs, expected) in [
            (Scenario::LatencyInjection, &["distribution=constant", "min=1ms"][..], "expected delay"),
            (Scenario::LatencyInjection, &["delay=1ms", "max=1ms"], "max does not belong to distribution=constant"),
            (Scenario::LatencyInjection, &["min=2s"], "expected min up to 1s"),
            (Scenario::LatencyInjection, &["delay=11m"], "a duration from 0s to 10m"),
            (Scenario::LatencyInjection, &["intensity=1.1"], "intensity is \"1.1\": expected a share from 0 to 1"),
            (Scenario::NetworkPartition, &["mode=reset", "transport=stdio"], "expected mode=silent, or transport=http"),
            (Scenario::NetworkPartition, &["mode=reset", "direction=to_client"], "or direction=both"),
            (Scenario::PacketLoss, &["burst=3"], "expected model=gilbert_elliott"),
            (Scenario::PacketLoss, &["model=gilbert_elliott", "burst=1", "intensity=0.9"], "intensity up to 0.500"),
            (Scenario::HttpStatus, &["status=401", "retry_after=1s"], "expected status=429 or status=503"),
            (Scenario::HttpStatus, &["status=200"], "a whole number from 400 to 599"),
            (Scenario::MemoryPressure, &["size=lots"], "expected a size from 1 B to 1.0 TiB, such as 100MiB, or bytes"),
            (Scenario::MemoryPressure, &["size=1GiB", "share=0.5"], "both size and share are given: expected one"),
            (Scenario::CpuOverload, &["cores=0"], "a whole number from 1 to 4096"),
            (Scenario::CpuOverload, &["cgroup=theirs"], "cgroup is \"theirs\": expected own, target"),
            (
                Scenario::MemoryPressure,
                &["target_processes=a"],
                "target_processes is given with cgroup=own: expected cgroup=target",
            ),
            (Scenario::Truncated, &["keep=1"], "keep is \"1\": expected a share from 0, and less than 1"),
            (Scenario::Oversize, &["bytes=65MiB"], "to 64.0 MiB"),
            (Scenario::ProcessCrash, &["signal=hup"], "expected kill, term, stop, close_stdin"),
        ] {
            let message = fault(scenario, pairs).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
