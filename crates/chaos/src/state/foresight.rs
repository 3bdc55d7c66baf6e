//! What an experiment on processes or resources would do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::State;
use super::admission::Admitted;
use crate::Scenario;
use crate::outlook::{CrashOutlook, ProcessOutlook, ResourceOutlook, millis};
use crate::process::ProcessTable;
use crate::steady::SECOND;
use crate::target::{ChaosTarget, Crash, Foresight};

impl State {
    /// What an experiment that may be started would do to processes, and what it would take. Nothing is done.
    pub(super) fn foresee(&self, admitted: &Admitted, now: Instant) -> (Option<CrashOutlook>, Option<ResourceOutlook>) {
        let Admitted { experiment, carriers, victims, .. } = admitted;
        let (scenario, parameters) = (experiment.scenario, &experiment.parameters);
        let ask = |target: &Arc<dyn ChaosTarget>| target.foresee(scenario, parameters, victims);
        if scenario != Scenario::ProcessCrash {
            return (None, carriers.iter().find_map(|target| ask(target).resource));
        }
        let table = ProcessTable::read().unwrap_or_default();
        let wanted = experiment.target_processes();
        let process = |target: &Arc<dyn ChaosTarget>| {
            let Foresight { restarted_after, .. } = ask(target);
            let pid = target.process().map(|process| process.pid);
            let entry = pid.and_then(|pid| table.get(pid));
            let by_component = wanted.as_ref().filter(|wanted| !wanted.matches(target.name()));
            let components = target.components().iter().map(|component| component.as_str());
            ProcessOutlook {
                target: target.name().to_owned(),
                components: by_component
                    .map(|wanted| components.filter(|name| wanted.matches(name)).map(str::to_owned).collect())
                    .unwrap_or_default(),
                pid,
                program: entry.map(|entry| entry.name.clone()),
                group: entry.map(|entry| table.group(entry.pid).filter(|process| !process.is_zombie).count() as u64),
                restarted_after: restarted_after.map(millis),
            }
        };
        let turns = experiment.crash_rate.map_or(1, |_| seconds(experiment.duration) * carriers.len() as u64);
        let crash = CrashOutlook {
            signal: Crash::of(parameters).as_str().to_owned(),
            rate: experiment.crash_rate.map(|rate| rate.get()),
            most: turns.min(self.kills_left(now) as u64),
            processes: carriers.iter().map(process).collect(),
        };
        (Some(crash), None)
    }
}

/// How many seconds begin in this time.
fn seconds(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(SECOND.as_nanos()).try_into().unwrap_or(u64::MAX)
}
