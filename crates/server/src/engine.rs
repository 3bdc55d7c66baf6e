//! The chaos engine of an instance.

use std::sync::Arc;

use mcpscope_chaos::guardian::Guardians;
use mcpscope_chaos::helper::{Ready, ResourceTarget};
use mcpscope_chaos::{ChaosTarget, Injector, Journal, JournalError, JournalLimits, Parts, Swept};
use mcpscope_core::ClockAnchor;
use mcpscope_health::View;
use mcpscope_hub::{Calls, ChaosSource};
use mcpscope_proxy::stdio::ChildHandle;
use mcpscope_proxy::{ChildTarget, RestartPolicy};

use crate::audit::Proc;
use crate::chaos::Chaos;
use crate::cli::Common;
use crate::data::{Abandoned, Data};
use crate::failure::{Failure, say};
use crate::instance::seed;

/// The part of the data that is the engine's.
const PART: &str = "chaos";

/// The engine, what it judges by, and where it keeps its journal.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) source: ChaosSource,
    pub(crate) injector: Injector,
    /// No other instance writes there.
    _data: Option<Data>,
}

/// What this program was not started for: it starts itself anew as something else when that is needed.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    /// Sees to it that servers end with us.
    pub(crate) guardians: Guardians,
    /// Takes memory and processors.
    pub(crate) helper: Ready,
}

/// Where servers that are started again are made known to the engine, which may crash them. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Targets(Option<ChaosSource>);

impl Targets {
    /// Those of this engine, if there is one.
    pub(crate) fn of(engine: Option<&Engine>) -> Self {
        Self(engine.map(|engine| engine.source.clone()))
    }

    /// This server, which is started again by this policy, is one as long as the answer lives.
    pub(crate) fn register(
        &self,
        name: &str,
        is_critical: bool,
        child: ChildHandle,
        policy: &RestartPolicy,
    ) -> Registered {
        let target = Arc::new(ChildTarget::new(name, is_critical, child).restarted_after(policy.backoff_min));
        if let Some(engine) = &self.0 {
            let target = target.clone();
            engine.post(move |controller, now| controller.register(target, now));
        }
        Registered { engine: self.0.clone(), target }
    }
}

/// A server that the engine may crash.
#[derive(Debug)]
pub(crate) struct Registered {
    engine: Option<ChaosSource>,
    target: Arc<ChildTarget>,
}

impl Registered {
    /// Whether nothing may be done to it from here on.
    pub(crate) fn set_critical(&self, is_critical: bool) {
        self.target.set_critical(is_critical);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(engine) = &self.engine {
            let target: Arc<dyn ChaosTarget> = self.target.clone();
            engine.post(move |controller, now| controller.unregister(&target, now));
        }
    }
}

/// Has the engine follow another plan.
pub(crate) fn follow_plan(engine: Option<&mcpscope_hub::Chaos>, changed: Chaos) {
    let Some(engine) = engine else { return };
    let off = changed.plan.off_reason.clone();
    engine.replace_plan(changed.plan, move |followed| match (followed, off) {
        (Ok(()), None) => say("mcpscope: chaos follows the changed plan"),
        (Ok(()), Some(why)) => say(format_args!("mcpscope: chaos is off: {why}")),
        (Err(error), _) => say(format_args!("mcpscope: the plan of chaos stays as it is: {error}")),
    });
}

impl Engine {
    /// The engine of the instance of this name, as it is configured.
    pub(crate) fn new(
        common: &Common,
        name: &str,
        helper: Ready,
        chaos: &Chaos,
        anchor: ClockAnchor,
        health: View,
    ) -> Result<Self, Failure> {
        if let Some(why) = &chaos.plan.off_reason {
            tracing::info!("chaos is off: {why}");
        }
        let data = Data::find(common.data.as_ref(), name)?;
        let journal = match &data {
            Some(data) => match Journal::open(&data.part(PART), JournalLimits::default()) {
                Ok(journal) => swept_beside(data).into_iter().fold(journal, Journal::ending),
                Err(error) if common.data.is_some() => return Err(Failure::usage(error).of("--data")),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    tracing::warn!("experiments are kept in memory alone, and gone when this ends: {error:#}");
                    Journal::in_memory()
                }
            },
            None => Journal::in_memory(),
        };
        say_swept(journal.swept(), "");
        let calls = Arc::new(Calls::new(anchor.mono, health));
        let steady_state = Some(calls.clone() as Arc<_>);
        let resources = ResourceTarget::new(helper).map(Arc::new);
        let resources = resources.inspect_err(|why| tracing::info!("memory and processors are left alone: {why}")).ok();
        let leak_audit = Some(Arc::new(Proc { resources: resources.clone() }) as Arc<_>);
        let parts = Parts {
            journal,
            steady_state,
            leak_audit,
            ..Parts::new(chaos.plan.clone(), chaos.seed.unwrap_or_else(seed), anchor)
        };
        let (controller, injector) = mcpscope_chaos::new(parts).map_err(Failure::usage)?;
        if let Some(resources) = resources {
            controller.register(resources, anchor.mono);
        }
        Ok(Self { source: ChaosSource::new(controller, calls), injector, _data: data })
    }
}

/// What instances of the same name, which ran beside the one that had this data, have left unfinished. It is closed.
fn swept_beside(data: &Data) -> Vec<Swept> {
    let close = |folder: Abandoned| {
        let path = folder.part(PART)?;
        let swept = Swept::in_folder(&path);
        let say = |error: JournalError| {
            tracing::warn!("what an earlier run has left stays: {:#}", anyhow::Error::new(error));
        };
        let swept = swept.map_err(say).ok()?;
        say_swept(&swept, &format!(" of {}", path.display()));
        Some(swept)
    };
    data.abandoned().filter_map(close).collect()
}

fn say_swept(swept: &Swept, place: &str) {
    if swept.ids.is_empty() {
        return;
    }
    let ids: Vec<String> = swept.ids.iter().map(u64::to_string).collect();
    say(format_args!(
        "mcpscope: an earlier run ended in the middle of experiment {}{place}; nothing of it is left",
        ids.join(", ")
    ));
}
