//! What is started by itself, and when.

use std::time::{Duration, Instant};

use crate::Scenario;
use crate::draw::Key;
use crate::plan::{Mode, Plan, ScenarioPlan};

/// Ticks at fixed times, each with draws of its own.
#[derive(Debug)]
pub(crate) struct Scheduler {
    key: Key,
    /// Ticks so far, whatever they were good for: what their draws are counted by.
    tick: u64,
    /// When it was switched on.
    begun: Option<Instant>,
    /// When it ticked last since then.
    last: Option<Instant>,
    next: Instant,
    delay: Duration,
    interval: Duration,
}

/// Each tick has these blocks of draws to itself, of eight numbers each: more than there can be scenarios.
const BLOCKS: u64 = 16;

impl Scheduler {
    pub(crate) fn new(seed: u64, plan: &Plan, now: Instant) -> Self {
        let (delay, interval) = (plan.scheduler_delay, plan.scheduler_interval);
        let begun = (plan.mode == Mode::Scheduled).then_some(now);
        Self { key: Key::scheduler(seed), tick: 0, begun, last: None, next: now + delay, delay, interval }
    }

    /// Goes on under another plan. A tick that is due already is due at once; what was switched off begins again.
    pub(crate) fn follow(&mut self, plan: &Plan, now: Instant) {
        if plan.mode != Mode::Scheduled {
            (self.begun, self.last) = (None, None);
            return;
        }
        let is_same = (self.delay, self.interval) == (plan.scheduler_delay, plan.scheduler_interval);
        if is_same && self.begun.is_some() {
            return;
        }
        (self.delay, self.interval) = (plan.scheduler_delay, plan.scheduler_interval);
        let first = *self.begun.get_or_insert(now) + self.delay;
        self.next = self.last.map_or(first, |last| last + self.interval).max(now);
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// What the tick that is due wants to start. Ticks that were missed are over; their draws are, too.
    pub(crate) fn due(&mut self, scenarios: &[ScenarioPlan], now: Instant) -> Option<Scenario> {
        let mut wanted = None;
        while self.next <= now {
            let is_late = now >= self.next + self.interval;
            wanted = if is_late { None } else { choose(self.key, self.tick, scenarios) };
            self.tick += 1;
            self.last = Some(self.next);
            self.next += self.interval;
        }
        wanted
    }
}

/// One number for the choice among those that are enabled, and one for each scenario there is, used or not: neither what
/// is enabled nor what is in the plan shifts the draws of the others.
fn choose(key: Key, tick: u64, scenarios: &[ScenarioPlan]) -> Option<Scenario> {
    let mut draws = key.block(tick.wrapping_mul(BLOCKS));
    let choice = draws.unit();
    let chances = Scenario::ALL.map(|scenario| (scenario, draws.unit()));
    let enabled: Vec<_> = scenarios.iter().filter(|plan| plan.enabled).collect();
    let plan = enabled.get((choice * enabled.len() as f64) as usize)?;
    let (_, chance) = chances.into_iter().find(|(scenario, _)| *scenario == plan.scenario)?;
    (chance < plan.probability.get()).then_some(plan.scenario)
}

#[cfg(test)]
mod tests {
    use mcpscope_core::Ratio;

    use super::*;
    use crate::Plan;

    const TICKS: u64 = 20_000;

    #[track_caller]
    fn check_chances(scenarios: &[ScenarioPlan]) {
        let key = Key::scheduler(11);
        let wanted: Vec<_> = (0..TICKS).map(|tick| choose(key, tick, scenarios)).collect();
        let enabled = scenarios.iter().filter(|plan| plan.enabled).count() as f64;
        let mut square = 0.0;
        let mut nothing = TICKS as f64;
        let mut cells = 0;
        for plan in scenarios {
            let count = wanted.iter().filter(|wanted| **wanted == Some(plan.scenario)).count() as f64;
            let expected = if plan.enabled { TICKS as f64 * plan.probability.get() / enabled } else { 0.0 };
            nothing -= expected;
            if expected > 0.0 {
                square += (count - expected).powi(2) / expected;
                cells += 1;
            } else {
                assert_eq!(count, 0.0, "{}", plan.scenario);
            }
        }
        if nothing > 0.5 {
            let count = wanted.iter().filter(|wanted| wanted.is_none()).count() as f64;
            square += (count - nothing).powi(2) / nothing;
        }
        // The 99.99 % points for up to six degrees of freedom; the sixth covers fewer.
        assert!(cells <= 6 && square < 27.9, "chi-square {square}");
    }

    #[test]
    fn each_scenario_is_started_as_often_as_its_chance_says() {
        check_chances(&Plan::default().scenarios);
    }

    #[test]
    fn what_is_disabled_or_impossible_is_never_started_and_what_is_certain_always() {
        let mut scenarios = Plan::default().scenarios;
        scenarios.iter_mut().for_each(|plan| plan.probability = Ratio::ONE);
        scenarios[1].probability = Ratio::ZERO;
        scenarios[2].enabled = false;
        check_chances(&scenarios);
    }

    #[test]
    fn what_one_scenario_is_allowed_does_not_shift_the_draws_of_others() {
        let key = Key::scheduler(5);
        let all = Plan::default().scenarios;
        let mut less = all.clone();
        less[4].probability = Ratio::ZERO;
        for tick in 0..1000 {
            match choose(key, tick, &all) {
                Some(Scenario::LatencyInjection) => assert_eq!(choose(key, tick, &less), None),
                other => assert_eq!(choose(key, tick, &less), other),
            }
        }
    }

    #[test]
    fn ticks_that_were_missed_are_over() {
        let start = Instant::now();
        let certain = ScenarioPlan { probability: Ratio::ONE, ..ScenarioPlan::new(Scenario::LatencyInjection) };
        let second = Duration::from_secs(1);
        let plan = Plan { mode: Mode::Scheduled, ..Plan::default() };
        let mut scheduler = Scheduler::new(1, &plan, start);
        let scenarios = [certain];
        assert_eq!(scheduler.due(&scenarios, start + second * 4), None);
        assert_eq!(scheduler.due(&scenarios, start + second * 5), Some(Scenario::LatencyInjection));
        assert_eq!(scheduler.due(&scenarios, start + second * 34), None);
        assert_eq!(scheduler.due(&scenarios, start + second * 100), Some(Scenario::LatencyInjection), "that of 95 s");
        assert_eq!(scheduler.next(), start + second * 125);
    }
}
