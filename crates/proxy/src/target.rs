//! What faults are done to, besides messages: the processes of supervised servers, and their control groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcpscope_chaos::{ChaosTarget, Foresight, Order, Parameters, ProcessId, Scenario, TargetError, Victim};
use mcpscope_core::{Component, FaultId};

use crate::stdio::ChildHandle;

/// A server that we start, as a target of `process_crash`: whichever process it is at the time, with its whole process group.
///
/// It is for servers that are started again when they crash; the crash of any other is its end. A server that ends by a fault, even
/// with exit code 0, has crashed.
#[derive(Debug)]
pub struct ChildTarget {
    name: Arc<str>,
    is_critical: AtomicBool,
    child: ChildHandle,
    restarted_after: Option<Duration>,
}

impl ChildTarget {
    /// The server called `name`, as in its probe: what becomes of its calls after a crash is known by that. Nothing is ever done to one that is critical.
    #[must_use]
    pub fn new(name: &str, is_critical: bool, child: ChildHandle) -> Self {
        Self { name: name.into(), is_critical: AtomicBool::new(is_critical), child, restarted_after: None }
    }

    /// The same, where it is known how long after a crash it is started again, for plans:
    /// [`RestartPolicy::backoff_min`](crate::RestartPolicy::backoff_min).
    #[must_use]
    pub fn restarted_after(self, wait: Duration) -> Self {
        Self { restarted_after: Some(wait), ..self }
    }

    /// Whether nothing may be done to it from now on.
    pub fn set_critical(&self, is_critical: bool) {
        self.is_critical.store(is_critical, Ordering::Relaxed);
    }
}

impl ChaosTarget for ChildTarget {
    fn name(&self) -> &str {
        &self.name
    }

    /// All of them: what is instrumented are the parts of a server.
    fn components(&self) -> &[Component] {
        &Component::ALL
    }

    fn is_critical(&self) -> bool {
        self.is_critical.load(Ordering::Relaxed)
    }

    fn is_there(&self) -> bool {
        self.child.id().is_some()
    }

    fn process(&self) -> Option<ProcessId> {
        self.child.process()
    }

    fn carries(&self, scenario: Scenario) -> bool {
        scenario == Scenario::ProcessCrash
    }

    fn foresee(&self, _: Scenario, _: &Parameters, _: &[Victim]) -> Foresight {
        Foresight { restarted_after: self.restarted_after, ..Foresight::default() }
    }

    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError> {
        self.child.crash(order)
    }

    fn undo(&self, fault: FaultId) -> Result<(), TargetError> {
        self.child.recover(fault, Instant::now());
        Ok(())
    }

    fn left_over(&self, fault: FaultId) -> Option<String> {
        self.child.left_over(fault)
    }
}
