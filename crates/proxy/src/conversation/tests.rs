//! Requests and answers in one conversation, message by message.

use std::time::{Duration, SystemTime};

use mcpscope_core::{ClockAnchor, Transport};
use mcpscope_hooks::{Parts, Probe};
use mcpscope_metrics::Metrics;

use super::*;
use crate::Limits;
use crate::child::ChildHandle;

struct Bench {
    now: Instant,
    metrics: Metrics,
    relay: Arc<Relay>,
    conversation: Conversation,
}

fn bench() -> Bench {
    bench_of(None)
}

/// With the process of the server, if it is one that we start.
fn bench_of(child: Option<ChildHandle>) -> Bench {
    let now = Instant::now();
    let anchor = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
    let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
    let probe = Probe::new(Parts { metrics: Some(metrics.clone()), ..Parts::new("s", Transport::Stdio) });
    let relay = Relay::new(probe, Limits::default(), child);
    let conversation = Conversation::new(Arc::clone(&relay), "", true, now);
    Bench { now, metrics, relay, conversation }
}

impl Bench {
    fn client(&self, json: &str) -> Observed {
        self.message(Direction::ToServer, json)
    }

    fn server(&self, json: &str) -> Observed {
        self.message(Direction::ToClient, json)
    }

    fn message(&self, direction: Direction, json: &str) -> Observed {
        self.message_at(direction, json, self.now)
    }

    fn message_at(&self, direction: Direction, json: &str, at: Instant) -> Observed {
        let travel = Travel::new(direction, Arrival::now(at));
        self.conversation.observe(json.as_bytes(), travel, &mut Lane::default())
    }

    #[track_caller]
    fn has(&self, line: &str) {
        let text = self.metrics.snapshot(self.now).to_prometheus();
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }

    #[track_caller]
    fn has_calls(&self, tool: &str, outcome: &str, count: u64) {
        self.has_ended(tool, outcome, false, count);
    }

    #[track_caller]
    fn has_ended(&self, tool: &str, outcome: &str, injected: bool, count: u64) {
        self.has(&format!("mcpscope_tool_call_duration_seconds_count{{server=\"s\",tool=\"{tool}\",outcome=\"{outcome}\",injected=\"{injected}\"}} {count}"));
    }
}

#[test]
fn a_handshake_opens_a_session_that_lasts_as_long_as_the_pair() {
    let bench = bench();
    bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-06-18"}}"#);
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-06-18\"} 1");
    bench.has("mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2025-06-18\"} 1");
    let Bench { now, metrics, conversation, .. } = bench;
    drop(conversation);
    let text = metrics.snapshot(now).to_prometheus();
    assert!(text.contains("mcpscope_active_sessions{server=\"s\",protocol=\"2025-06-18\"} 0"));
}

#[test]
fn answers_find_their_requests_by_direction_and_id() {
    let bench = bench();
    bench.client(r#"{"id":1,"method":"tools/call","params":{"name":"a"}}"#);
    bench.client(r#"{"id":"1","method":"tools/call","params":{"name":"b"}}"#);
    bench.server(r#"{"id":1,"method":"sampling/createMessage"}"#);
    bench.server(r#"{"id":"1","result":{"isError":true}}"#);
    bench.client(r#"{"id":1,"result":{}}"#);
    bench.server(r#"{"id":1,"result":{}}"#);
    bench.has_calls("a", "ok", 1);
    bench.has_calls("b", "error", 1);
    bench.server(r#"{"id":1,"result":{}}"#);
    bench.has("mcpscope_dropped_total{what=\"unmatched_response\"} 1");
    bench.has("mcpscope_component_operations_total{component=\"transport\",injected=\"false\"} 7");
}

#[test]
fn a_batch_counts_message_by_message() {
    let bench = bench();
    let observed = bench.client(r#"[{"id":1,"method":"tools/call","params":{"name":"a"}},{"id":2,"method":"tools/call","params":{"name":"a"}}]"#);
    assert_eq!(observed.begun.to_vec(), [RequestId::Integer(1), RequestId::Integer(2)]);
    bench.server(r#"[{"id":2,"result":{}},{"id":1,"error":{"code":-32603,"message":"x"}}]"#);
    bench.has_calls("a", "ok", 1);
    bench.has_calls("a", "error", 1);
}

#[test]
fn calls_end_by_cancellation_timeout_and_the_end_of_the_pair() {
    let bench = bench();
    for (id, tool) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        bench.client(&format!(r#"{{"id":{id},"method":"tools/call","params":{{"name":"{tool}"}}}}"#));
    }
    bench.client(r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#);
    bench.client(r#"{"method":"notifications/cancelled","params":{"requestId":2,"reason":"timed out"}}"#);
    bench.has_calls("a", "cancelled", 1);
    bench.has_calls("b", "timeout", 1);
    bench.client(r#"{"id":9,"method":"subscriptions/listen"}"#);
    bench.conversation.end(
        Direction::ToServer,
        &RequestId::Integer(3),
        Outcome::error(ErrorType::ConnectionLost),
        0,
        bench.now,
    );
    bench.conversation.end(Direction::ToServer, &RequestId::Integer(3), Outcome::Cancelled, 0, bench.now);
    bench.has_calls("c", "error", 1);
    bench.conversation.expire(Duration::from_secs(300), bench.now + Duration::from_secs(300));
    bench.has_calls("d", "timeout", 1);
    bench.has("mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 4");
}

#[test]
fn stateless_clients_are_counted_once_they_are_answered_and_for_five_minutes() {
    let bench = bench();
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"}}"#;
    bench.client(&format!(r#"{{"id":1,"method":"server/discover","params":{{{meta}}}}}"#));
    bench.server(r#"{"id":1,"error":{"code":-32601,"message":"no such method"}}"#);
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 0");
    for id in 2..5 {
        bench.client(&format!(r#"{{"id":{id},"method":"server/discover","params":{{{meta}}}}}"#));
        bench.server(&format!(r#"{{"id":{id},"result":{{}}}}"#));
    }
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 1");
    bench.has("mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2026-07-28\"} 3");
    bench.relay.clients.expire(bench.now + Duration::from_secs(299));
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 1");
    bench.relay.clients.expire(bench.now + Duration::from_secs(300));
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 0");
}

#[test]
fn a_handshake_for_an_unknown_revision_is_one_session() {
    let bench = bench();
    bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2031-01-01"}}"#);
    bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-11-25"}}"#);
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-11-25\"} 1");
}

#[test]
fn a_closed_session_is_over_whoever_still_holds_it() {
    let bench = bench();
    bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-11-25"}}"#);
    bench.client(r#"{"id":1,"method":"tools/call","params":{"name":"a"}}"#);
    bench.conversation.close(Ending::Well, bench.now);
    bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-11-25\"} 0");
    bench.has_calls("a", "timeout", 1);
}

#[test]
fn a_session_that_was_left_has_lasted_until_it_was_last_used() {
    let bench = bench();
    bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
    bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-11-25"}}"#);
    let at = bench.now + Duration::from_secs(10);
    bench.message_at(Direction::ToServer, r#"{"id":5,"result":{}}"#, at);
    bench.conversation.close(Ending::Left, bench.now + Duration::from_secs(1800));
    let text = bench.metrics.snapshot(bench.now).to_prometheus();
    let sum = text.lines().find_map(|line| {
        line.strip_prefix("mcp_server_session_duration_seconds_sum{server=\"s\",mcp_protocol_version=\"2025-11-25\"")
    });
    assert!(sum.unwrap().contains("} 10"), "{sum:?}");
}

#[test]
fn a_session_with_an_open_stream_is_not_idle() {
    let Bench { now, conversation, .. } = bench();
    let later = now + Duration::from_secs(1);
    assert!(conversation.idle_since(later));
    conversation.stream(1, now);
    assert!(!conversation.idle_since(later));
    conversation.stream(-1, now);
    assert!(conversation.idle_since(later));
}

#[test]
fn a_flood_of_requests_is_followed_up_to_a_bound() {
    let bench = bench();
    let batch = |from: usize| {
        let requests: Vec<_> = (from..from + 1000).map(|id| format!(r#"{{"id":{id},"method":"ping"}}"#)).collect();
        format!("[{}]", requests.join(","))
    };
    for at in 0..20 {
        bench.client(&batch(at * 1000));
    }
    // One more than there are places, for the one that needs none.
    bench.has("mcpscope_dropped_total{what=\"untracked_call\"} 3615");
    bench.conversation.close(Ending::Well, bench.now);
    assert_eq!(bench.client(&batch(0)).begun.len(), 1000, "places are free again");
}

#[test]
fn what_cannot_be_followed_is_counted_and_passes() {
    let bench = bench();
    assert_eq!(bench.client("garbage").passage, Passage::Now);
    bench.client(r#"{"id":null,"method":"ping"}"#);
    bench.has(
        "mcpscope_component_errors_total{component=\"transport\",error_type=\"invalid_message\",injected=\"false\"} 1",
    );
    bench.has("mcpscope_dropped_total{what=\"untracked_call\"} 1");
}

#[test]
fn progress_by_a_token_that_two_gave_is_that_of_the_newest() {
    let bench = bench();
    let call = |id: u32, token: u32| {
        bench.client(&format!(r#"{{"id":{id},"method":"ping","params":{{"_meta":{{"progressToken":{token}}}}}}}"#));
    };
    let of = |token: i64| {
        let mut state = bench.conversation.lock();
        let found = state.pending.by_token(Direction::ToServer, &RequestId::Integer(token));
        found.and_then(|in_flight| in_flight.call()?.id.clone())
    };
    call(1, 5);
    assert_eq!(of(5), Some(RequestId::Integer(1)));
    call(5, 5);
    assert_eq!(of(5), Some(RequestId::Integer(5)));
    call(2, 5);
    assert_eq!(of(5), Some(RequestId::Integer(2)));
}

#[test]
fn calls_in_flight_while_a_fault_made_the_server_stand_still_are_touched_by_it_however_they_end() {
    let child = ChildHandle::new(None, true);
    let bench = bench_of(Some(child.clone()));
    let at = |seconds| bench.now + Duration::from_secs(seconds);
    let call = |id: u64, tool: &str| format!(r#"{{"id":{id},"method":"tools/call","params":{{"name":"{tool}"}}}}"#);
    let ask = |id, tool, seconds| drop(bench.message_at(Direction::ToServer, &call(id, tool), at(seconds)));
    let answer = |id: u64, seconds| {
        let answer = format!(r#"{{"id":{id},"result":{{}}}}"#);
        drop(bench.message_at(Direction::ToClient, &answer, at(seconds)));
    };
    let fault = FaultId(7);
    ask(1, "before", 0);
    answer(1, 1);
    ask(2, "late", 2);
    child.standstills().begin(fault, at(10), at(60));
    for (id, tool) in [(3, "cancelled"), (4, "timeout"), (5, "again"), (6, "late"), (7, "lost"), (8, "closed")] {
        ask(id, tool, 11);
    }
    let cancel = r#"{"method":"notifications/cancelled","params":{"requestId":3}}"#;
    drop(bench.message_at(Direction::ToServer, cancel, at(12)));
    ask(5, "again", 13);
    assert!(bench.conversation.end(
        Direction::ToServer,
        &RequestId::Integer(7),
        Outcome::error(ErrorType::HttpStatus(504)),
        0,
        at(14)
    ));
    child.standstills().end(Some(fault), at(20));
    answer(2, 21);
    answer(5, 21);
    answer(6, 21);
    ask(9, "after", 21);
    answer(9, 22);
    ask(9, "after", 22);
    bench.conversation.expire(Duration::from_secs(50), at(61));
    bench.conversation.close(Ending::Well, at(62));
    let calls = [
        ("before", "ok", false, 1),
        ("late", "ok", true, 2),
        ("cancelled", "cancelled", true, 1),
        ("again", "cancelled", true, 1),
        ("again", "ok", true, 1),
        ("lost", "error", true, 1),
        ("timeout", "timeout", true, 1),
        ("closed", "timeout", true, 1),
        ("after", "ok", false, 1),
        ("after", "timeout", false, 1),
    ];
    for (tool, outcome, is_touched, count) in calls {
        bench.has_ended(tool, outcome, is_touched, count);
    }
    let text = bench.metrics.snapshot(bench.now).to_prometheus();
    let series = text.lines().filter(|line| line.starts_with("mcpscope_tool_call_duration_seconds_count{"));
    assert_eq!(series.count(), calls.len(), "{text}");
}
