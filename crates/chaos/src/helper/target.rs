//! The target that takes memory and processors, and loses packets.

#[cfg(not(target_os = "linux"))]
pub use other::ResourceTarget;

#[cfg(target_os = "linux")]
pub use linux::ResourceTarget;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    use mcpscope_core::FaultId;

    use crate::helper::groups::{Controller, Groups, Place};
    use crate::helper::process::{Helper, PROGRAM, sweep};
    use crate::helper::room::Limits;
    use crate::helper::wire::{Job, Take, Task};
    use crate::helper::{HelperError, Ready, aim, burn, serve};
    use crate::network::{Netem, Network};
    use crate::outlook::ResourceOutlook;
    use crate::parameter::Reader;
    use crate::target::{Achieved, ChaosTarget, Foresight, Order, ProcessId, Progress, TargetError, Unit, Victim};
    use crate::{Parameters, Scenario};

    /// Takes memory (`memory_pressure`) and processors (`cpu_overload`) by helper processes, each for one fault; and has the
    /// kernel delay and lose packets (`latency_injection` and `packet_loss` with `backend=netem`) in a network of theirs.
    ///
    /// It takes no more than is safe: of memory what the tightest limit of control groups, machine and address space has
    /// free, less a reserve; of each core, and of a quota, 95 %. What it came to is in its progress and in the report.
    /// With `cgroup=target` a helper moves to the control group of [`Order::victims`] first, and those limits count.
    /// When this is dropped, its helpers end.
    #[derive(Debug)]
    pub struct ResourceTarget {
        started: Mutex<BTreeMap<FaultId, Started>>,
    }

    /// How long a network may be there that is made to see whether there can be one.
    const TRIAL: Duration = Duration::from_secs(10);

    /// Of so many faults before the newest it is known how their helpers ended.
    const REMEMBERED: u64 = 64;

    #[derive(Clone, Debug)]
    struct Started {
        helper: Arc<Helper>,
        /// How much of what; nothing of packets, which are counted.
        requested: Option<(f64, Unit)>,
    }

    impl ResourceTarget {
        /// By helpers of this program, which is `ready` for that.
        ///
        /// # Errors
        /// The system has no helpers: it is not Linux, or has no `/proc`.
        pub fn new(_ready: Ready) -> Result<Self, HelperError> {
            fs::read_link(PROGRAM).map_err(HelperError::NoProgram)?;
            Ok(Self { started: Mutex::default() })
        }

        /// Its helpers that are there now: their process ids, each with the fault that it is for.
        #[must_use]
        pub fn helpers(&self) -> Vec<(u32, FaultId)> {
            let started = self.lock();
            let there = started.iter().filter(|(_, started)| !started.helper.is_gone());
            there.filter_map(|(fault, started)| Some((started.helper.id()?.pid, *fault))).collect()
        }

        fn start(&self, order: &Order<'_>) -> Result<(), HelperError> {
            let (task, requested) = match netem(order.scenario, order.parameters)? {
                Some(netem) => (Task::Network(netem), None),
                None => {
                    let (take, requested, unit) = take(order.scenario, order.parameters, order.victims)?;
                    (Task::Take(take), Some((requested, unit)))
                }
            };
            let deadline_ns = monotonic_ns(order.expires_at);
            let helper = Helper::start(Job { task, victims: order.victims.to_vec(), deadline_ns })?;
            let mut started = self.lock();
            // Of the newest it may not have been asked yet what became of them.
            started.retain(|fault, started| {
                !started.helper.is_gone() || fault.0.saturating_add(REMEMBERED) >= order.fault.0
            });
            started.insert(order.fault, Started { helper, requested });
            Ok(())
        }

        /// Whether packets can be delayed and lost here: a network is made, and done away with again.
        ///
        /// # Errors
        /// They cannot, with the reason and what can be done about it.
        pub fn has_netem(&self) -> Result<(), HelperError> {
            try_netem(Netem::default())
        }

        fn started(&self, fault: FaultId) -> Option<Started> {
            self.lock().get(&fault).cloned()
        }

        /// The helper that is a network for this fault.
        fn network_of(&self, fault: FaultId) -> Option<Arc<Helper>> {
            self.started(fault).filter(|started| started.requested.is_none()).map(|started| started.helper)
        }

        fn lock(&self) -> MutexGuard<'_, BTreeMap<FaultId, Started>> {
            self.started.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Makes a network as it is asked for, and does away with it again.
    fn try_netem(netem: Netem) -> Result<(), HelperError> {
        let deadline_ns = monotonic_ns(Instant::now() + TRIAL);
        let helper = Helper::start(Job { task: Task::Network(netem), victims: Vec::new(), deadline_ns })?;
        let tried = helper.wait_until_up();
        helper.end_and_wait();
        tried
    }

    fn monotonic_ns(at: Instant) -> u64 {
        let left = at.saturating_duration_since(Instant::now());
        u64::try_from((serve::monotonic() + left).as_nanos()).unwrap_or(u64::MAX)
    }

    /// What is to be done to packets, if it is about them.
    fn netem(scenario: Scenario, parameters: &Parameters) -> Result<Option<Netem>, HelperError> {
        Ok(Netem::read(&Reader::new(scenario, parameters)?)?)
    }

    /// What a helper is to do, and how much of what that is.
    fn take(scenario: Scenario, parameters: &Parameters, victims: &[Victim]) -> Result<(Take, f64, Unit), HelperError> {
        let (root, reader) = (Path::new("/"), Reader::new(scenario, parameters)?);
        let is_cpu = scenario == Scenario::CpuOverload;
        if reader.aims_at_target()? {
            aim::place(root, victims, if is_cpu { Controller::Cpu } else { Controller::Memory })?;
        }
        if is_cpu {
            let duty = reader.share("intensity")?;
            let duty = reader.required("intensity", duty)?.get();
            let there = burn::cores(victims).len() as u64;
            let wanted = reader.whole("cores")?.map_or(there.max(1), i64::unsigned_abs);
            if wanted > there {
                return Err(HelperError::TooManyCores { wanted, there });
            }
            return Ok((Take::Cpu { cores: wanted as usize, duty }, duty, Unit::Share));
        }
        let limits = Limits::in_groups_of(root, victims.first().map(|victim| victim.process.pid));
        let bytes = match reader.share("share")? {
            Some(share) => limits.share(share.get()),
            None => {
                let size = reader.size("size")?;
                reader.required("size", size)?
            }
        };
        limits.check(bytes)?;
        Ok((Take::Memory { bytes }, bytes as f64, Unit::Bytes))
    }

    /// What a helper would come to now.
    fn outlook(
        scenario: Scenario,
        parameters: &Parameters,
        victims: &[Victim],
    ) -> Result<ResourceOutlook, HelperError> {
        let (take, requested, unit) = take(scenario, parameters, victims)?;
        let (root, pid) = (Path::new("/"), victims.first().map(|victim| victim.process.pid));
        let (expected, limit, cores) = match take {
            Take::Memory { bytes } => {
                let (expected, limit) = Limits::in_groups_of(root, pid).expected(bytes);
                (expected as f64, limit, None)
            }
            Take::Cpu { cores, duty } => {
                let (expected, limit) = burn::expected(duty, cores, Groups::of(root, pid).cpu_quota());
                (expected, limit, Some(cores as u64))
            }
        };
        let place = Place::of(root, pid, take.controller());
        let cgroup = place.map(|place| place.counts.display().to_string());
        Ok(ResourceOutlook { requested, expected, unit, cores, limit, cgroup })
    }

    impl ChaosTarget for ResourceTarget {
        fn name(&self) -> &str {
            "helper"
        }

        fn is_critical(&self) -> bool {
            false
        }

        fn carries(&self, scenario: Scenario) -> bool {
            matches!(scenario, Scenario::MemoryPressure | Scenario::CpuOverload) || scenario.has_netem()
        }

        fn check(&self, scenario: Scenario, parameters: &Parameters, victims: &[Victim]) -> Result<(), TargetError> {
            let checked = match netem(scenario, parameters) {
                // Whether there can be a network takes too long to find out.
                Ok(Some(_)) => Ok(()),
                Ok(None) => take(scenario, parameters, victims).map(drop),
                Err(error) => Err(error),
            };
            checked.map_err(|error| TargetError::of(&error))
        }

        fn probe(&self, scenario: Scenario, parameters: &Parameters) -> Result<(), TargetError> {
            let probed = netem(scenario, parameters).and_then(|netem| netem.map_or(Ok(()), try_netem));
            probed.map_err(|error| TargetError::of(&error))
        }

        fn foresee(&self, scenario: Scenario, parameters: &Parameters, victims: &[Victim]) -> Foresight {
            // What cannot be done was refused. A network takes nothing.
            if scenario.has_netem() {
                return Foresight::default();
            }
            Foresight { resource: outlook(scenario, parameters, victims).ok(), ..Foresight::default() }
        }

        fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
            self.start(order).map_err(|error| TargetError::of(&error))
        }

        fn wait_until_begun(&self, fault: FaultId) {
            if let Some(network) = self.network_of(fault) {
                // That there is none its progress tells.
                drop(network.wait_until_up());
            }
        }

        fn undo(&self, fault: FaultId) -> Result<(), TargetError> {
            match self.started(fault) {
                Some(Started { helper, requested: Some(_) }) => helper.end(),
                Some(Started { helper, requested: None }) => helper.end_network(),
                None => {}
            }
            Ok(())
        }

        fn left_over(&self, fault: FaultId) -> Option<String> {
            // Where there is no process any more, there is nothing of what it had.
            let Started { helper, .. } = self.started(fault).filter(|started| !started.helper.is_gone())?;
            let pid = helper.id().map_or_else(|| "?".to_owned(), |id| id.pid.to_string());
            Some(format!("the helper process {pid} is still there"))
        }

        fn progress(&self, fault: FaultId) -> Progress {
            let started = self.lock();
            let Some(Started { helper, requested }) = started.get(&fault) else { return Progress::default() };
            let achieved = helper.achieved().zip(*requested);
            let cgroup = helper.group();
            let achieved = achieved.map(|(achieved, (requested, unit))| Achieved { requested, achieved, unit, cgroup });
            Progress { process: helper.id(), achieved, packets: helper.packets(), ended: helper.ended() }
        }

        fn network(&self, fault: FaultId) -> Option<Arc<dyn Network>> {
            Some(self.network_of(fault)?)
        }

        fn sweep(&self, _: FaultId, process: ProcessId) -> Result<(), TargetError> {
            let told = || TargetError(format!("the helper process {} of an earlier run is still there", process.pid));
            if sweep(process) { Ok(()) } else { Err(told()) }
        }
    }

    impl Drop for ResourceTarget {
        fn drop(&mut self) {
            self.lock().values().for_each(|started| started.helper.end());
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use mcpscope_core::FaultId;

    use crate::Scenario;
    use crate::helper::{HelperError, Ready};
    use crate::target::{ChaosTarget, Order, TargetError};

    /// Takes memory and processors by helper processes, on Linux. On other systems there is none.
    #[derive(Debug)]
    pub struct ResourceTarget(std::convert::Infallible);

    impl ResourceTarget {
        /// By helpers of this program, which is `ready` for that.
        ///
        /// # Errors
        /// The system is not Linux.
        pub fn new(_ready: Ready) -> Result<Self, HelperError> {
            Err(HelperError::Unsupported)
        }

        /// Its helpers that are there now: their process ids, each with the fault that it is for.
        #[must_use]
        pub fn helpers(&self) -> Vec<(u32, FaultId)> {
            match self.0 {}
        }

        /// Whether packets can be delayed and lost here: a network is made, and done away with again.
        ///
        /// # Errors
        /// They cannot, with the reason and what can be done about it.
        pub fn has_netem(&self) -> Result<(), HelperError> {
            match self.0 {}
        }
    }

    impl ChaosTarget for ResourceTarget {
        fn name(&self) -> &str {
            match self.0 {}
        }

        fn is_critical(&self) -> bool {
            match self.0 {}
        }

        fn carries(&self, _: Scenario) -> bool {
            match self.0 {}
        }

        fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
            match self.0 {}
        }

        fn undo(&self, _: FaultId) -> Result<(), TargetError> {
            match self.0 {}
        }

        fn left_over(&self, _: FaultId) -> Option<String> {
            match self.0 {}
        }
    }
}
