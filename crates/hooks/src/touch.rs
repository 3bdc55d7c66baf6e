//! What faults do to one message, and when that lets it go on.

use std::time::Instant;

use mcpscope_core::{Effect, FaultId, Injection, OnEnd, Order, Release};

/// When the bytes of a message may go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Passage {
    /// At once, as they are.
    #[default]
    Now,
    /// As faults have it.
    Touched(Touch),
    /// Never, and nothing comes in their place: they are not for the other side.
    Never,
}

impl Passage {
    /// Of a message that arrived at `at` and was given these injections.
    #[must_use]
    pub fn new(injections: Vec<Injection>, at: Instant) -> Self {
        if injections.is_empty() { Self::Now } else { Self::Touched(Touch { at, injections }) }
    }

    /// That of a batch, which travels as one: as late as its latest message, and not at all if one of them is lost.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Never, _) | (_, Self::Never) => Self::Never,
            (passage, Self::Now) | (Self::Now, passage) => passage,
            (Self::Touched(mut touch), Self::Touched(other)) => {
                touch.injections.extend(other.injections);
                Self::Touched(touch)
            }
        }
    }
}

/// What faults do to one message: all of these injections, each to what the one before has left.
#[derive(Clone, Debug, PartialEq)]
pub struct Touch {
    pub(crate) at: Instant,
    pub(crate) injections: Vec<Injection>,
}

/// What becomes of a message that faults have touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on, whatever it looks like by now.
    Goes,
    /// It is lost.
    Lost,
    /// It waits, and is to be looked at again when the faults change, or at this time.
    Waits(Instant),
}

impl Touch {
    /// The injections, in order.
    #[must_use]
    pub fn injections(&self) -> &[Injection] {
        &self.injections
    }

    /// The injections that are acted on by waiting, or by not arriving: from when the message is kept back.
    pub fn waits(&self) -> impl Iterator<Item = &Injection> {
        let waits = |effect: &Effect| matches!(effect, Effect::Delay { .. } | Effect::Hold { .. } | Effect::Drop);
        self.injections.iter().filter(move |injection| waits(&injection.effect))
    }

    /// What becomes of the message at `now`. `is_live` tells whether a fault is still active, `is_cancelled` whether the call
    /// that the message answers was given up by its caller.
    pub fn fate(&self, now: Instant, is_live: impl Fn(FaultId) -> bool, is_cancelled: impl Fn() -> bool) -> Fate {
        let lives = |injection: &Injection| now < injection.ends && is_live(injection.fault);
        let (mut due, mut first_end, mut held, mut is_lost) = (self.at, None::<Instant>, None, false);
        for injection in &self.injections {
            match &injection.effect {
                Effect::Delay { by, on_end, .. } => {
                    if lives(injection) {
                        due += *by;
                        first_end = Some(first_end.map_or(injection.ends, |end| end.min(injection.ends)));
                    } else {
                        // One that has been delayed for long enough is not held by it any more.
                        is_lost |= *on_end == OnEnd::Drop && now < self.at + *by;
                    }
                }
                Effect::Hold { until, on_end } => {
                    let is_released = *until == Release::Cancelled && is_cancelled();
                    if is_released {
                    } else if lives(injection) {
                        held = Some(injection.ends);
                    } else {
                        is_lost |= *on_end == OnEnd::Drop;
                    }
                }
                Effect::Drop => is_lost = true,
                Effect::Duplicate
                | Effect::Answer(_)
                | Effect::Change(_)
                | Effect::Slow { .. }
                | Effect::Network
                | Effect::Break(_) => {}
            }
        }
        if is_lost {
            Fate::Lost
        } else if due > now {
            Fate::Waits(first_end.map_or(due, |end| end.min(due)))
        } else if let Some(end) = held {
            Fate::Waits(end)
        } else {
            Fate::Goes
        }
    }

    /// Whether what comes behind the message in the same direction must stay behind it.
    #[must_use]
    pub fn keeps_order(&self) -> bool {
        let keeps = |injection: &Injection| matches!(injection.effect, Effect::Delay { order: Order::Preserve, .. });
        self.injections.iter().any(keeps)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn touch(at: Instant, effects: Vec<(Effect, Instant)>) -> Touch {
        let numbered = effects.into_iter().zip(1..);
        let injections = numbered.map(|((effect, ends), id)| Injection { fault: FaultId(id), effect, ends }).collect();
        Touch { at, injections }
    }

    fn delay(ms: u64) -> Effect {
        Effect::Delay { by: Duration::from_millis(ms), order: Order::Preserve, on_end: OnEnd::Deliver }
    }

    #[test]
    fn delays_add_up_as_long_as_their_faults_last() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let touch = touch(start, vec![(delay(100), ms(1000)), (delay(50), ms(120))]);
        let fate = |now, live: &dyn Fn(FaultId) -> bool| touch.fate(now, live, || false);
        assert_eq!(fate(ms(10), &|_| true), Fate::Waits(ms(120)), "one of them ends");
        assert_eq!(fate(ms(120), &|_| true), Fate::Goes);
        assert_eq!(fate(ms(10), &|fault| fault == FaultId(2)), Fate::Waits(ms(50)), "the first was stopped");
        assert_eq!(fate(ms(10), &|_| false), Fate::Goes);
    }

    #[test]
    fn what_is_delayed_is_lost_with_its_fault_if_that_is_wanted_and_it_was_not_due() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let by = Duration::from_millis(100);
        let touch = touch(start, vec![(Effect::Delay { by, order: Order::Preserve, on_end: OnEnd::Drop }, ms(1000))]);
        let fate = |now, live: bool| touch.fate(now, |_| live, || false);
        assert_eq!((fate(ms(50), true), fate(ms(50), false)), (Fate::Waits(ms(100)), Fate::Lost));
        assert_eq!((fate(ms(100), true), fate(ms(100), false)), (Fate::Goes, Fate::Goes), "it was due");
    }

    #[test]
    fn what_is_held_goes_or_is_lost_with_its_fault_or_goes_when_it_is_not_wanted_any_more() {
        let start = Instant::now();
        let end = start + Duration::from_secs(1);
        let held = |until, on_end| touch(start, vec![(Effect::Hold { until, on_end }, end)]);
        let (hang, lost) = (held(Release::FaultEnd, OnEnd::Deliver), held(Release::FaultEnd, OnEnd::Drop));
        let fate = |touch: &Touch, now, live: bool, cancelled: bool| touch.fate(now, |_| live, || cancelled);
        assert_eq!(fate(&hang, start, true, true), Fate::Waits(end));
        assert_eq!((fate(&hang, end, true, false), fate(&hang, start, false, false)), (Fate::Goes, Fate::Goes));
        assert_eq!((fate(&lost, end, true, false), fate(&lost, start, false, false)), (Fate::Lost, Fate::Lost));
        let late = held(Release::Cancelled, OnEnd::Drop);
        assert_eq!((fate(&late, start, true, false), fate(&late, start, true, true)), (Fate::Waits(end), Fate::Goes));
    }
}
