//! `health.proto`.

use mcpscope_hub::health::{ChildUsage, ComponentReport, Overall, Report, State};

use super::{ms_since_epoch, whole_ms};
use crate::proto::{ComponentHealth, Health, HealthState, ProcessUsage};

impl From<State> for HealthState {
    fn from(state: State) -> Self {
        match state {
            State::Healthy => Self::Healthy,
            State::Warning => Self::Warning,
            State::Critical => Self::Critical,
        }
    }
}

impl From<Overall> for HealthState {
    fn from(overall: Overall) -> Self {
        match overall {
            Overall::Healthy => Self::Healthy,
            Overall::Degraded => Self::Degraded,
            Overall::Warning => Self::Warning,
            Overall::Critical => Self::Critical,
        }
    }
}

impl From<&ComponentReport> for ComponentHealth {
    fn from(report: &ComponentReport) -> Self {
        let ComponentReport { state, message, since, rate, count } = report;
        Self {
            status: HealthState::from(*state).into(),
            message: message.clone(),
            since: ms_since_epoch(*since),
            rate: *rate,
            count: *count,
        }
    }
}

impl From<&ChildUsage> for ProcessUsage {
    fn from(child: &ChildUsage) -> Self {
        Self {
            name: child.name.clone(),
            pid: child.pid,
            memory_usage: child.usage.resident_bytes,
            memory_ratio: child.usage.memory_ratio,
            cpu_usage: child.usage.cpu_ratio,
        }
    }
}

/// The health of the instance and of its children.
pub(crate) fn health(report: &Report, children: &[ChildUsage]) -> Health {
    Health {
        overall: HealthState::from(report.overall).into(),
        health_percentage: report.health_percentage,
        components: report.components.iter().map(|(name, component)| (name.clone(), component.into())).collect(),
        uptime: whole_ms(report.uptime),
        timestamp: ms_since_epoch(report.timestamp),
        processes: children.iter().map(Into::into).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use mcpscope_hub::health::Usage;

    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let component =
            |state, rate, count| ComponentReport { state, message: format!("{state}!"), since: at(5), rate, count };
        let components = BTreeMap::from([
            ("registry".to_owned(), component(State::Warning, Some(1.5), None)),
            ("sessions".to_owned(), component(State::Critical, None, Some(0))),
        ]);
        let report = Report {
            overall: Overall::Degraded,
            health_percentage: 0.5,
            components,
            uptime: Duration::from_millis(7),
            timestamp: at(12),
        };
        let usage = Usage { resident_bytes: None, memory_ratio: Some(0.25), cpu_ratio: 0.75 };
        let found = health(&report, &[ChildUsage { name: "files".into(), pid: 42, usage }]);
        let status = |state, message: &str, rate, count| ComponentHealth {
            status: HealthState::into(state),
            message: message.into(),
            since: 5,
            rate,
            count,
        };
        let expected = Health {
            overall: HealthState::Degraded.into(),
            health_percentage: 0.5,
            components: BTreeMap::from([
                ("registry".to_owned(), status(HealthState::Warning, "warning!", Some(1.5), None)),
                ("sessions".to_owned(), status(HealthState::Critical, "critical!", None, Some(0))),
            ]),
            uptime: 7,
            timestamp: 12,
            processes: vec![ProcessUsage {
                name: "files".into(),
                pid: 42,
                memory_usage: None,
                memory_ratio: Some(0.25),
                cpu_usage: 0.75,
            }],
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn every_state_keeps_its_name() {
        for state in [State::Healthy, State::Warning, State::Critical] {
            let name = HealthState::from(state).as_str_name().to_lowercase();
            assert_eq!(name, format!("health_state_{state}"));
        }
        for overall in [Overall::Healthy, Overall::Degraded, Overall::Warning, Overall::Critical] {
            let name = HealthState::from(overall).as_str_name().to_lowercase();
            assert_eq!(name, format!("health_state_{overall}"));
        }
    }
}
