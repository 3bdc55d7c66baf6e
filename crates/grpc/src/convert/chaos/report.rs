//! Reports of experiments.

use mcpscope_hub::chaos::{
    Achieved, Audit, Child, ChildRole, Footprint, Injected, OutageReport, Packets, Point, RecoveryReport, Report,
    Sample, Slot, Touched, Unit,
};

use super::{parameters, time};
use crate::proto::{self, ChaosChildRoleKind, ChaosStartedBy, ChaosTestStatus, ChaosUnit};

impl From<&Report> for proto::ChaosReport {
    fn from(report: &Report) -> Self {
        Self {
            id: report.id,
            scenario: report.scenario.clone(),
            status: ChaosTestStatus::from(report.status).into(),
            error: report.error.clone(),
            started_by: ChaosStartedBy::from(report.started_by).into(),
            parameters: parameters(&report.parameters),
            seed: report.seed,
            targets: report.targets.clone(),
            start_time: time(report.start_time),
            end_time: time(report.end_time),
            steady_state: report.steady_state.clone(),
            guard: report.guard.clone(),
            before: report.before.map(Into::into),
            during: report.during.map(Into::into),
            after: report.after.map(Into::into),
            injection: Some((&report.injection).into()),
            time_to_detect: report.time_to_detect,
            recovery: Some(report.recovery.into()),
            leak: report.leak.clone(),
            replay: report.replay.clone(),
            audit: Some((&report.audit).into()),
            outages: report.outages.iter().map(Into::into).collect(),
            samples: report.samples.iter().map(|point| (*point).into()).collect(),
        }
    }
}

impl From<&OutageReport> for proto::ChaosOutage {
    fn from(outage: &OutageReport) -> Self {
        let OutageReport { target, at, restarted_after, ready_after, first_good_call_after } = outage.clone();
        Self { target, at, restarted_after, ready_after, first_good_call_after }
    }
}

impl From<&Audit> for proto::ChaosAudit {
    fn from(audit: &Audit) -> Self {
        let Audit { looked_at, before, after } = audit;
        Self {
            looked_at: looked_at.clone(),
            before: before.as_ref().map(Into::into),
            after: after.as_ref().map(Into::into),
        }
    }
}

impl From<&Footprint> for proto::ChaosFootprint {
    fn from(footprint: &Footprint) -> Self {
        let Footprint { children, descriptors, memory_bytes } = footprint;
        let all = |children: &Vec<Child>| children.iter().map(|child| (*child).into()).collect();
        Self {
            children: children.as_ref().map(|children| proto::ChaosChildren { children: all(children) }),
            descriptors: *descriptors,
            memory_bytes: *memory_bytes,
        }
    }
}

impl From<Child> for proto::ChaosChild {
    fn from(child: Child) -> Self {
        let (kind, experiment) = match child.role {
            ChildRole::Supervised => (ChaosChildRoleKind::Supervised, 0),
            ChildRole::Helper(experiment) => (ChaosChildRoleKind::Helper, experiment),
            ChildRole::Other => (ChaosChildRoleKind::Other, 0),
        };
        let role = Some(proto::ChaosChildRole { kind: kind.into(), experiment });
        Self { pid: child.pid, role, stopped: child.stopped }
    }
}

impl From<Slot> for proto::ChaosSlot {
    fn from(slot: Slot) -> Self {
        Self { duration: slot.duration, error_rate: slot.error_rate, sample: Some(slot.sample.into()) }
    }
}

impl From<Point> for proto::ChaosPoint {
    fn from(point: Point) -> Self {
        Self { at: point.at, duration: point.duration, sample: Some(point.sample.into()) }
    }
}

impl From<Sample> for proto::ChaosSample {
    fn from(sample: Sample) -> Self {
        let Sample { calls, errors, p50_ms, p95_ms, p99_ms, healthy, repeated, duplicates, touched } = sample;
        Self { calls, errors, p50_ms, p95_ms, p99_ms, healthy, repeated, duplicates, touched: touched.map(Into::into) }
    }
}

impl From<Touched> for proto::ChaosTouched {
    fn from(touched: Touched) -> Self {
        let Touched { calls, errors, p50_ms, p95_ms, p99_ms } = touched;
        Self { calls, errors, p50_ms, p95_ms, p99_ms }
    }
}

impl From<&Injected> for proto::ChaosInjection {
    fn from(injection: &Injected) -> Self {
        Self {
            connections: injection.connections,
            connections_chosen: injection.connections_chosen,
            matched: injection.matched,
            injected: injection.injected,
            observed: injection.observed,
            requested_intensity: injection.requested_intensity,
            achieved_intensity: injection.achieved_intensity,
            unjournalled: injection.unjournalled,
            resource: injection.resource.as_ref().map(Into::into),
            packets: injection.packets.map(Into::into),
        }
    }
}

impl From<Packets> for proto::ChaosPackets {
    fn from(packets: Packets) -> Self {
        let Packets { sent, dropped } = packets;
        Self { sent, dropped }
    }
}

impl From<&Achieved> for proto::ChaosAchieved {
    fn from(achieved: &Achieved) -> Self {
        let Achieved { requested, achieved, unit, cgroup } = achieved.clone();
        Self { requested, achieved, unit: ChaosUnit::from(unit).into(), cgroup }
    }
}

impl From<Unit> for ChaosUnit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Share => Self::Share,
            Unit::Bytes => Self::Bytes,
        }
    }
}

impl From<RecoveryReport> for proto::ChaosRecovery {
    fn from(recovery: RecoveryReport) -> Self {
        let RecoveryReport { limit, time, observed } = recovery;
        Self { limit, time, observed }
    }
}
