//! What the engine has is told as it is, in the shapes of the other interfaces.

use super::*;

#[test]
fn values_come_back_as_they_were_given() {
    let max = i64::MAX;
    for (given, expected) in [
        (serde_json::json!("300ms"), serde_json::json!("300ms")),
        (serde_json::json!(8000), serde_json::json!(8000)),
        (serde_json::json!(-1), serde_json::json!(-1)),
        (serde_json::json!(0.3), serde_json::json!(0.3)),
        (serde_json::json!(1.0), serde_json::json!(1)),
        (serde_json::json!(true), serde_json::json!(true)),
        (serde_json::json!(null), serde_json::json!(null)),
        // As a number it would be another one, and as text it is read as well.
        (serde_json::json!(max), serde_json::json!(max.to_string())),
        (serde_json::json!(u64::MAX), serde_json::json!(u64::MAX.to_string())),
    ] {
        assert_eq!(from_value(to_value(&given)), expected, "{given}");
    }
}

#[cfg(feature = "serde")]
mod json {
    use mcpscope_hub::chaos::{
        Achieved, Audit, Child, ChildRole, Footprint, Injected, OutageReport, Point, RecoveryReport, Report, Sample,
        Slot, Touched, Unit,
    };
    use serde::Serialize;
    use serde_json::{Value, json};

    use super::super::*;

    /// The shape of the message is the engine's own.
    fn same<'a, T: Serialize, M: From<&'a T> + Serialize>(value: &'a T) -> Value {
        let shape = serde_json::to_value(M::from(value)).unwrap();
        assert_eq!(shape, serde_json::to_value(value).unwrap());
        shape
    }

    fn sample(touched: Option<Touched>) -> Sample {
        Sample {
            calls: 3,
            errors: 1,
            p50_ms: Some(0.5),
            p95_ms: None,
            p99_ms: Some(9.5),
            healthy: Some(0.75),
            repeated: touched.map(|_| 4),
            duplicates: touched.map(|_| 5),
            touched,
        }
    }

    fn outage(is_over: bool) -> OutageReport {
        let after = |ms| is_over.then_some(ms);
        OutageReport {
            target: "weather".into(),
            at: 5,
            restarted_after: Some(6),
            ready_after: after(7),
            first_good_call_after: after(8),
        }
    }

    fn audit() -> Audit {
        let child = |role| Child { pid: 7, role, stopped: true };
        let children = [ChildRole::Supervised, ChildRole::Helper(3), ChildRole::Other].map(child).to_vec();
        Audit {
            looked_at: vec!["children".into(), "memory".into()],
            before: Some(Footprint { children: Some(Vec::new()), ..Footprint::default() }),
            after: Some(Footprint { children: Some(children), descriptors: Some(4), memory_bytes: Some(5) }),
        }
    }

    fn report(full: bool) -> Report {
        let parameters = Parameters::new().with("delay", "300ms").with("intensity", 0.5).with("every", 2);
        let touched = Touched { calls: 1, errors: 1, p50_ms: Some(1.5), p95_ms: None, p99_ms: None };
        let sample = sample(full.then_some(touched));
        let slot = Slot { duration: 10_000, error_rate: full.then_some(0.25), sample };
        let text = |text: &str| full.then(|| text.to_owned());
        Report {
            id: 3,
            scenario: "latency_injection".into(),
            status: if full { Status::Aborted } else { Status::NotStarted },
            error: text("stopped"),
            started_by: if full { StartedBy::Demo } else { StartedBy::Scheduler },
            parameters,
            seed: 1 << 60,
            targets: vec!["weather".into()],
            start_time: 5,
            end_time: 7,
            steady_state: vec!["error_rate < 0.05".into()],
            guard: text("p95 > 1"),
            before: full.then_some(slot),
            during: full.then_some(slot),
            after: Some(slot),
            injection: Injected {
                achieved_intensity: full.then_some(0.125),
                injected: 8,
                resource: full.then_some(Achieved {
                    requested: 0.8,
                    achieved: 0.75,
                    unit: Unit::Share,
                    cgroup: Some("/sys/fs/cgroup/weather".into()),
                }),
                packets: full.then_some(mcpscope_hub::chaos::Packets { sent: 90, dropped: 10 }),
                ..Injected::default()
            },
            time_to_detect: full.then_some(4),
            recovery: RecoveryReport { limit: 1000, time: full.then_some(9), observed: full },
            outages: if full { vec![outage(true), outage(false)] } else { Vec::new() },
            leak: text("a child"),
            audit: if full { audit() } else { Audit::default() },
            replay: text("mcpscope chaos replay 3"),
            samples: if full { vec![Point { at: -1000, duration: 1000, sample }] } else { Vec::new() },
        }
    }

    fn test(full: bool) -> Test {
        let details = Details {
            parameters: report(full).parameters,
            targets: vec!["weather".into()],
            seed: 9,
            injected: 8,
            error: full.then(|| "stopped".to_owned()),
            report: full.then(|| report(full)),
        };
        Test {
            id: 3,
            name: "latency_injection".into(),
            start_time: 5,
            end_time: 8,
            status: Status::Running,
            impact: "low".into(),
            recovery_time: 1000,
            details,
        }
    }

    #[test]
    fn states_and_reports_have_the_shapes_of_the_other_interfaces() {
        for full in [true, false] {
            same::<_, proto::ChaosReport>(&report(full));
            same::<_, proto::ChaosTest>(&test(full));
            let status = ChaosStatus {
                timestamp: 1_764_000_000_123,
                mode: if full { Mode::Scheduled } else { Mode::Off },
                off: (!full).then(|| "chaos.enabled".to_owned()),
                active_tests: 1,
                emergency_stop: full,
                stopped_by: full.then(|| "a person".to_owned()),
                rearm_at: full.then_some(7),
                total_history: 2,
                available_scenarios: vec!["hang".into()],
                active_tests_details: vec![test(full)],
                recent_failures: vec![test(!full)],
                journal_errors: 4,
            };
            same::<_, proto::ChaosStatus>(&status);
        }
        for status in [
            Status::Planned,
            Status::Running,
            Status::Recovering,
            Status::Completed,
            Status::Failed,
            Status::Aborted,
            Status::NotStarted,
        ] {
            let shape = same::<_, proto::ChaosTest>(&Test { status, ..test(false) });
            assert_eq!(shape["status"], json!(status.as_str()));
        }
    }

    #[test]
    fn outlooks_and_events_too() {
        let hits = vec![ExpectedHits {
            server: "s".into(),
            direction: "to_server".into(),
            kind: "request".into(),
            method: Some("tools/call".into()),
            tool: None,
            hits: 2.5,
        }];
        let outlook = Outlook {
            scenario: "hang".into(),
            duration: 8000,
            targets: vec!["s".into()],
            connections: 2,
            connection_share: 0.5,
            packets: false,
            expected_hits: 2.5,
            hits,
            recovery_time: 5000,
            steady_state: vec!["error_rate < 0.05".into()],
            crash: None,
            resource: None,
        };
        same::<_, proto::ChaosOutlook>(&outlook);
        same::<_, proto::ChaosOutlook>(&Outlook { packets: true, ..outlook.clone() });
        for full in [false, true] {
            let process = ProcessOutlook {
                target: "s".into(),
                components: if full { vec!["tools".into()] } else { Vec::new() },
                pid: full.then_some(7),
                program: full.then(|| "node".into()),
                group: full.then_some(2),
                restarted_after: full.then_some(200),
            };
            let crash =
                CrashOutlook { signal: "kill".into(), rate: full.then_some(0.5), most: 3, processes: vec![process] };
            let resource = ResourceOutlook {
                requested: 2.0,
                expected: 1.0,
                unit: if full { Unit::Bytes } else { Unit::Share },
                cores: full.then_some(2),
                limit: full.then(|| "the machine's memory".into()),
                cgroup: full.then(|| "/sys/fs/cgroup".into()),
            };
            let outlook = Outlook { crash: Some(crash), resource: Some(resource), ..outlook.clone() };
            same::<_, proto::ChaosOutlook>(&outlook);
        }
        let causes = [
            Cause::Person,
            Cause::Alert("memory".into()),
            Cause::Threshold,
            Cause::Leak("a child".into()),
            Cause::Coordinator,
        ];
        let stops = causes.map(|cause| Happened::EmergencyStop { cause });
        let scenario = || "hang".to_owned();
        let others = [
            Happened::Changed { id: 3, scenario: scenario(), status: Status::Failed, reason: Some("late".into()) },
            Happened::Changed { id: 3, scenario: scenario(), status: Status::Completed, reason: None },
            Happened::Refused {
                scenario: scenario(),
                parameters: Parameters::new().with("a", 1),
                by: StartedBy::Scheduler,
                reason: "x".into(),
            },
            Happened::Rearmed { automatically: true },
            Happened::PlanReplaced { mode: Mode::Manual, off: Some("x".into()), ended: vec![1, 2] },
            Happened::PlanReplaced { mode: Mode::Off, off: None, ended: Vec::new() },
            Happened::Swept { ids: vec![4] },
        ];
        for what in stops.into_iter().chain(others) {
            same::<_, proto::ChaosEvent>(&Event { sequence: 7, time: 8, what });
        }
    }

    #[test]
    fn a_divergence_shows_both_hits() {
        let hit = HitRecord {
            t_us: 1,
            rule: "hang".into(),
            connection: 2,
            direction: Some("to_server".into()),
            ordinal: 3,
            number: 4,
            kind: Some("request".into()),
            method: Some("tools/call".into()),
            tool: None,
            draw: 0.5,
            effect: "hold".into(),
            amount: Some(-5),
        };
        same::<_, proto::ChaosHit>(&hit);
        let divergence = Divergence { at: 9, expected: Some(hit), found: None };
        let shown = proto::ChaosDivergence::from(&divergence);
        assert_eq!((shown.at, shown.found, shown.text), (9, None, divergence.to_string()));
    }
}
