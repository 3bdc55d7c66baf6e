//! What went on to the server before it was looked at, so that looking at it takes nothing of the server's time.
//!
//! Whoever next needs to know of it looks at it first: the thread that wrote it, once that is done, or the one that has read what
//! may be the answer. So everything is seen in its order, and nobody waits for a server that does not read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mcpscope_hooks::{Departure, Lane};

use crate::conversation::Arrival;

/// So much is copied for that at most, in bytes. Of more, looking is the smaller part of what takes its time.
pub(super) const MAX_BYTES: usize = 4096;

/// Whole lines that nobody has looked at yet.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    /// Whether there are any: read for everything that the server writes.
    is_any: AtomicBool,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// When they came; nothing once they were looked at.
    came: Option<Arrival>,
    /// On which their calls leave.
    lane: Lane,
}

impl Unseen {
    /// These lines wait to be written from `now` on, and nobody has looked at them.
    pub(super) fn put(&self, lines: &[u8], came: Arrival, now: Instant) {
        let mut unseen = self.lock();
        unseen.bytes.clear();
        unseen.bytes.extend_from_slice(lines);
        unseen.came = Some(came);
        unseen.lane.queued(now);
        // Before they are written: whoever reads what answers them finds them.
        self.is_any.store(true, Ordering::Release);
    }

    /// Shows each line to `look`, if nobody has looked at them yet.
    pub(super) fn see(&self, look: impl FnMut(&[u8], &mut Lane, Arrival)) {
        if self.is_any.load(Ordering::Acquire) {
            self.lock().see(&self.is_any, look);
        }
    }

    /// The same, and the departure of the calls among them, which have been written now.
    pub(super) fn gone(&self, look: impl FnMut(&[u8], &mut Lane, Arrival)) -> Option<Departure> {
        let mut unseen = self.lock();
        unseen.see(&self.is_any, look);
        unseen.lane.depart()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // A panic in the looking is caught there.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn see(&mut self, is_any: &AtomicBool, mut look: impl FnMut(&[u8], &mut Lane, Arrival)) {
        let Some(came) = self.came.take() else { return };
        for line in self.bytes.split_inclusive(|byte| *byte == b'\n') {
            look(line.trim_ascii(), &mut self.lane, came);
        }
        is_any.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read as _, Write as _};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use mcpscope_core::{ClockAnchor, Direction, Transport};
    use mcpscope_hooks::{Parts, Probe};
    use mcpscope_metrics::Metrics;
    use mcpscope_tracing::{Filter, Tracer};

    use super::super::observe::Watch;
    use super::super::pump::{End, Pump, Side};
    use super::*;
    use crate::Limits;
    use crate::conversation::Conversation;
    use crate::relay::Relay;

    const CALL: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"echo\"}}\n";
    const ANSWER: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[]}}\n";

    struct Bench {
        metrics: Metrics,
        tracer: Tracer,
        watch: Watch,
    }

    fn bench() -> Bench {
        let now = Instant::now();
        let anchor = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
        let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
        let tracer = Tracer::new(&mcpscope_tracing::Config::default(), anchor, 7);
        let mut parts = Parts::new("s", Transport::Stdio);
        (parts.metrics, parts.tracer) = (Some(metrics.clone()), Some(tracer.clone()));
        let relay = Relay::new(Probe::new(parts), Limits::default(), None);
        let conversation = Conversation::new(Arc::clone(&relay), "", true, now);
        Bench { metrics, tracer, watch: Watch::new(relay, conversation, None) }
    }

    impl Bench {
        fn has(&self, line: &str) -> bool {
            self.metrics.snapshot(Instant::now()).to_prometheus().lines().any(|it| it == line)
        }

        /// Passes on what the one side has written in this direction, and returns it.
        fn passes(&self, direction: Direction, text: &str) -> String {
            let (stopped, _stop) = io::pipe().unwrap();
            let ((from, mut client), (mut server, to)) = (io::pipe().unwrap(), io::pipe().unwrap());
            client.write_all(text.as_bytes()).unwrap();
            drop(client);
            let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
            let pump = Pump { from: &from, to: &to, stopped: &stopped, drains: true, direction };
            let mut side = Some(Side::new(&self.watch, direction));
            assert_eq!(pump.run(&mut side), End::Input);
            drop(to);
            let mut passed = String::new();
            server.read_to_string(&mut passed).unwrap();
            passed
        }
    }

    const OK: &str =
        r#"mcpscope_tool_call_duration_seconds_count{server="s",tool="echo",outcome="ok",injected="false"} 1"#;
    const UNMATCHED: &str = r#"mcpscope_dropped_total{what="unmatched_response"} 1"#;

    #[test]
    fn what_went_on_first_is_counted_all_the_same() {
        let bench = bench();
        let lines = format!("{CALL}\n{{\"method\":\"notifications/initialized\"}}\n");
        assert_eq!(bench.passes(Direction::ToServer, &lines), lines);
        assert_eq!(bench.passes(Direction::ToClient, ANSWER), ANSWER);
        assert!(bench.has(OK) && !bench.has(UNMATCHED));
        assert!(bench.has(r#"mcpscope_message_queue_depth{server="s",direction="to_server"} 0"#));
    }

    #[test]
    fn an_answer_that_is_faster_than_who_writes_the_request_is_its_answer() {
        let bench = bench();
        let came = Arrival::now(Instant::now());
        bench.watch.goes_unseen(CALL.as_bytes(), came, came.at + Duration::from_nanos(1));
        // It is still being written.
        assert_eq!(bench.passes(Direction::ToClient, ANSWER), ANSWER);
        assert!(bench.has(OK) && !bench.has(UNMATCHED));
        let kept = bench.tracer.traces(&Filter::default());
        let spans: Vec<_> = kept.iter().map(|trace| trace.spans.len()).collect();
        assert_eq!(spans, [2], "the call as it came, and as it went on");
        assert!(bench.watch.has_gone().is_some(), "who has written it is told of the call");
        assert!(bench.has(OK), "nobody looks twice");
        assert!(bench.watch.has_gone().is_none());
    }
}
