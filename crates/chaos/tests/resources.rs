//! What a target tells of how it goes, and what becomes of the experiment: on made-up time, with a made-up target.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::{Arc, Mutex};

use common::{SECOND, World};
use mcpscope_chaos::{Achieved, ChaosTarget, Ended, Order, Plan, Progress, Scenario, Status, TargetError, Unit};
use mcpscope_core::FaultId;

/// A target that tells what a test wants.
#[derive(Debug, Default)]
struct Fake {
    progress: Mutex<Progress>,
}

impl ChaosTarget for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn is_critical(&self) -> bool {
        false
    }

    fn carries(&self, scenario: Scenario) -> bool {
        matches!(scenario, Scenario::MemoryPressure | Scenario::CpuOverload)
    }

    fn apply(&self, _: &Order<'_>) -> Result<(), TargetError> {
        Ok(())
    }

    fn undo(&self, _: FaultId) -> Result<(), TargetError> {
        Ok(())
    }

    fn left_over(&self, _: FaultId) -> Option<String> {
        None
    }

    fn progress(&self, _: FaultId) -> Progress {
        self.progress.lock().unwrap().clone()
    }
}

fn world() -> (World, Arc<Fake>) {
    let (world, fake) = (World::new(Plan::default()), Arc::new(Fake::default()));
    world.controller.register(fake.clone(), world.now);
    (world, fake)
}

#[track_caller]
fn check_end(ended: Ended, status: Status, why: &str) {
    let (mut world, fake) = world();
    let id = world.start("memory_pressure", &[]);
    world.pass(SECOND);
    assert_eq!(world.status(id), Status::Running);
    fake.progress.lock().unwrap().ended = Some(ended);
    world.pass(SECOND);
    let test = world.test(id);
    assert_eq!((test.status, test.details.error.as_deref()), (status, Some(why)));
}

#[test]
fn what_lets_go_aborts_the_experiment_and_what_breaks_fails_it() {
    check_end(
        Ended::LetGo("the machine has little left".into()),
        Status::Aborted,
        "fake let go: the machine has little left",
    );
    check_end(Ended::Failed("it was killed".into()), Status::Failed, "fake: it was killed");
}

#[test]
fn what_was_achieved_is_reported_beside_what_was_requested() {
    for (scenario, unit, requested, share) in [
        ("memory_pressure", Unit::Bytes, 200.0, (1.0, Some(0.5))),
        ("cpu_overload", Unit::Share, 0.8, (0.8, Some(0.4))),
    ] {
        let (mut world, fake) = world();
        let id = world.start(scenario, &["duration=2s"]);
        let achieved = Achieved { requested, achieved: requested / 2.0, unit };
        fake.progress.lock().unwrap().achieved = Some(achieved);
        world.pass(60 * SECOND);
        let report = world.controller.report(id.0, world.now).unwrap();
        let injection = report.injection;
        assert_eq!(report.to_html().contains("<dd>100 B<"), unit == Unit::Bytes, "{}", report.to_html());
        assert_eq!(injection.resource, Some(achieved));
        assert_eq!((injection.requested_intensity, injection.achieved_intensity), share);
    }
}
