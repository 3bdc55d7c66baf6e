//! Whole exports, to collectors that do as they are told, on a clock that stands still.

use std::future::pending;
use std::sync::Mutex;

use mcpscope_health::State;

use super::*;
use crate::delivery::{Accepted, Again, Refusal};
use crate::ending::{Ends, FLUSH};
use crate::testing::{Log, World};

/// What a collector does with requests.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Take,
    /// Takes them, and says this, and if it counts, how often it did.
    Say(&'static str, bool),
    Reject(u64),
    Refuse(Again),
    Hang,
}

struct Scripted {
    does: Mutex<Does>,
    /// Spans of each request.
    requests: Mutex<Vec<usize>>,
}

impl Collector for Arc<Scripted> {
    type Request = ExportTraceServiceRequest;

    async fn send(&self, request: Self::Request) -> Result<Accepted, Refusal> {
        let spans = request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|scope| scope.spans.len()).sum();
        let requests = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(spans);
            requests.len()
        };
        let does = *self.does.lock().unwrap();
        match does {
            Does::Take => Ok(Accepted::default()),
            Does::Say(message, counts) => {
                let message = if counts { format!("{message} {requests}") } else { message.to_owned() };
                Ok(Accepted { rejected: 0, message })
            }
            Does::Reject(rejected) => Ok(Accepted { rejected, message: "too many".to_owned() }),
            Does::Refuse(again) => Err(Refusal::new("refused", again)),
            Does::Hang => pending().await,
        }
    }
}

struct Running {
    world: World,
    collector: Arc<Scripted>,
    ends: Ends,
    begun: Instant,
}

fn config() -> Traces {
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:1")];
    let service = crate::Service { version: String::new(), instance_id: String::new() };
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    crate::Config::read(&crate::Settings::default(), &service, variables).0.traces.unwrap()
}

/// Runs an export to a collector that does this, with so many bytes for spans that wait, beside `work`, and then ends it.
async fn export<T>(does: Does, max_bytes: usize, work: impl AsyncFnOnce(&Running) -> T) -> (Running, T, Counts) {
    export_as(&config(), None, does, max_bytes, work).await
}

/// The same as it is configured, and to a console too.
async fn export_as<T>(
    config: &Traces,
    console: Option<Box<dyn Write + Send>>,
    does: Does,
    max_bytes: usize,
    work: impl AsyncFnOnce(&Running) -> T,
) -> (Running, T, Counts) {
    let world = World::new(max_bytes);
    let collector = Arc::new(Scripted { does: Mutex::new(does), requests: Mutex::default() });
    let (ends, ending) = Ending::new();
    let running = Running { world, collector, ends, begun: Instant::now() };
    let World { reader, reporter, .. } = &running.world;
    let condition = Condition::new(reporter.clone(), reader.clone());
    reader.may_drop(DROPPED_SPAN);
    let collector = config.otlp.is_some().then(|| Arc::clone(&running.collector));
    let exports = running.world.exports();
    let export = Export::new(config, exports, collector, console, Resource::default(), reader, &condition);
    let work = async {
        let done = work(&running).await;
        running.ends.begin();
        done
    };
    let (counts, done) = tokio::join!(export.run(ending), work);
    (running, done, counts)
}

const PLENTY: usize = 64 << 20;

async fn seconds(n: u64) {
    sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn spans_wait_for_others_but_not_for_long() {
    let (running, (), counts) = export(Does::Take, PLENTY, async |running| {
        running.world.call(1);
        seconds(4).await;
        assert!(running.collector.requests.lock().unwrap().is_empty());
        running.world.call(2);
        seconds(2).await;
        assert_eq!(*running.collector.requests.lock().unwrap(), [3]);
        // More than a batch goes at once.
        running.world.call(600);
        seconds(1).await;
        assert_eq!(running.collector.requests.lock().unwrap()[1..], [512]);
        running.world.call(1);
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 604, dropped_spans: 0 });
    assert_eq!(running.collector.requests.lock().unwrap().iter().sum::<usize>(), 604);
    assert_eq!((running.world.dropped(DROPPED_SPAN), running.world.health()), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_span_that_is_to_wait_for_nothing_does_not() {
    let config = Traces { schedule_delay: Duration::ZERO, ..config() };
    let (running, (), counts) = export_as(&config, None, Does::Take, PLENTY, async |running| {
        for n in 1..=10 {
            running.world.call(1);
            sleep(Duration::from_millis(20)).await;
            assert_eq!(running.collector.requests.lock().unwrap().len(), n);
        }
    })
    .await;
    assert_eq!((counts.exported_spans, running.world.dropped(DROPPED_SPAN)), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn traces_that_do_not_fill_a_batch_exactly_are_no_bottleneck() {
    const SPANS: u64 = 30 * 340 * 3;
    let (collector, console) = (config(), Traces { otlp: None, console: true, ..config() });
    for config in [collector, console] {
        let shown: Box<dyn Write + Send> = Box::new(io::sink());
        let shown = config.console.then_some(shown);
        let (running, (), counts) = export_as(&config, shown, Does::Take, 512 << 10, async |running| {
            for _ in 0..30 {
                for _ in 0..340 {
                    let root = running.world.tracer.span(mcpscope_core::Component::JsonRpc, "work", None);
                    root.child("a").end();
                    root.child("b").end();
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        assert_eq!(counts, Counts { exported_spans: SPANS, dropped_spans: 0 }, "console: {}", config.console);
        assert!(running.collector.requests.lock().unwrap().iter().all(|spans| *spans < config.max_batch_spans + 3));
    }
}

/// Never takes anything, until it is let go.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_console_that_hangs_does_not_hold_up_the_collector_for_long() {
    let both = Traces { console: true, ..config() };
    for (config, exported, dropped) in [(&both, 101, 0), (&Traces { otlp: None, ..both.clone() }, 0, 101)] {
        let (let_go, stuck) = std::sync::mpsc::channel();
        let (running, (), counts) =
            export_as(config, Some(Box::new(Stuck(stuck))), Does::Take, PLENTY, async |running| {
                // By hand, since the clock does not go on by itself while a thread hangs.
                for _ in 0..10 {
                    running.world.call(10);
                    tokio::time::advance(Duration::from_secs(1)).await;
                }
                let (state, message) = running.world.health().unwrap();
                assert_eq!(state, State::Warning);
                assert!(
                    message.ends_with("failing: exporting spans to the console fails: given up: timed out"),
                    "{message}"
                );
                drop(let_go);
                running.world.call(1);
                seconds(10).await;
                assert_eq!(running.collector.requests.lock().unwrap().iter().sum::<usize>() as u64, exported);
                assert_eq!(running.world.dropped(DROPPED_SPAN), dropped);
                // What does not work is told also while a collector works.
                assert_eq!(running.world.health().unwrap().0, State::Warning);
            })
            .await;
        assert_eq!(counts, Counts { exported_spans: exported, dropped_spans: dropped });
        assert_eq!(running.world.dropped(DROPPED_SPAN), dropped);
    }
}

#[tokio::test(start_paused = true)]
async fn drops_are_counted_while_a_collector_has_a_batch() {
    const SPANS: u64 = 20;
    let bytes = 128 << 10;
    for does in [Does::Hang, Does::Refuse(Again::After(Duration::from_secs(10)))] {
        let (running, (), counts) = export(does, bytes, async |running| {
            let mut most_held = 0;
            for second in 1..=700 {
                running.world.call(SPANS);
                sleep(Duration::from_secs(1)).await;
                most_held = most_held.max(second * SPANS - running.world.dropped(DROPPED_SPAN));
            }
            // One batch, and what has room for the next: what is neither is counted, whatever the batch waits for.
            assert!(most_held < 512 + bytes as u64 / 80, "{most_held} spans were neither held nor counted");
        })
        .await;
        assert_eq!(counts, Counts { exported_spans: 0, dropped_spans: 700 * SPANS });
        assert_eq!(running.world.dropped(DROPPED_SPAN), 700 * SPANS);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_collector_takes_late_and_what_made_room_meanwhile_are_all() {
    let (running, (dropped, recorded), counts) = export(Does::Hang, 64 << 10, async |running| {
        let mut recorded = 0;
        for _ in 0..8 {
            running.world.call(500);
            recorded += 500;
            seconds(1).await;
        }
        // It has not failed yet: its first answer is not late.
        assert_eq!((running.world.health(), running.collector.requests.lock().unwrap().len()), (None, 1));
        let dropped = running.world.dropped(DROPPED_SPAN);
        *running.collector.does.lock().unwrap() = Does::Take;
        seconds(30).await;
        (dropped, recorded)
    })
    .await;
    assert!(dropped > 1000, "{dropped} of {recorded} spans are counted while the first batch is under way");
    assert!(counts.exported_spans > 0, "{counts:?}");
    assert_eq!(counts.exported_spans + counts.dropped_spans, recorded);
    assert_eq!(running.world.dropped(DROPPED_SPAN), counts.dropped_spans);
    assert_eq!(counts.dropped_spans, dropped, "nothing twice");
}

#[tokio::test(start_paused = true)]
async fn drops_are_counted_while_a_console_hangs() {
    let config = Traces { otlp: None, console: true, ..config() };
    let (let_go, stuck) = std::sync::mpsc::channel();
    let console: Box<dyn Write + Send> = Box::new(Stuck(stuck));
    let (running, (), counts) = export_as(&config, Some(console), Does::Take, 8 << 10, async |running| {
        // By hand, as above; the export has its turn after each step.
        let pass = async || {
            tokio::time::advance(LOOK * 2).await;
            tokio::task::yield_now().await;
        };
        running.world.call(10);
        pass().await;
        assert_eq!(running.world.dropped(DROPPED_SPAN), 0, "they are being shown");
        running.world.call(1000);
        pass().await;
        assert_eq!(running.world.health(), None, "it may still be written");
        let dropped = running.world.dropped(DROPPED_SPAN);
        assert!(dropped > 800, "{dropped}");
        drop(let_go);
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 0, dropped_spans: 1010 });
    assert_eq!(running.world.dropped(DROPPED_SPAN), 1010);
}

#[tokio::test(start_paused = true)]
async fn what_a_collector_says_is_told_once() {
    for (does, told) in [(Does::Say("out of date", false), 1), (Does::Say("so often:", true), 16)] {
        let log = Log::default();
        let guard = log.collect(tracing::Level::WARN);
        let (running, (), counts) = export(does, PLENTY, async |running| {
            for _ in 0..30 {
                running.world.call(1);
                seconds(6).await;
            }
        })
        .await;
        drop(guard);
        assert_eq!((counts.exported_spans, running.world.health()), (30, None));
        assert_eq!(running.collector.requests.lock().unwrap().len(), 30);
        let log = log.text();
        let said = "the collector at http://collector:1/v1/traces (http/protobuf) says: ";
        assert_eq!(log.matches(said).count(), told, "{log}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_span_is_exported_or_dropped_while_the_collector_hangs() {
    const SPANS: u64 = 20_000;
    let (running, (), counts) = export(Does::Hang, 1 << 20, async |running| {
        for _ in 0..100 {
            running.world.call(SPANS / 100);
            sleep(Duration::from_millis(700)).await;
        }
        let (state, message) = running.world.health().unwrap();
        assert_eq!(state, State::Warning);
        let expected = "Observability failing: exporting traces to collector:1 fails: no answer within ";
        assert!(message.starts_with(expected), "{message}");
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 0, dropped_spans: SPANS });
    assert_eq!(running.world.dropped(DROPPED_SPAN), SPANS);
    // It failed before: nothing is waited for at the end.
    assert!(running.begun.elapsed() < Duration::from_millis(70_100), "{:?}", running.begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_comes_back_gets_what_is_still_there_and_health_says_so() {
    let (running, (), counts) = export(Does::Refuse(Again::Later), PLENTY, async |running| {
        running.world.call(10);
        seconds(8).await;
        assert_eq!(running.world.health().unwrap().0, State::Warning);
        *running.collector.does.lock().unwrap() = Does::Take;
        seconds(20).await;
        assert_eq!(running.world.health(), Some((State::Healthy, "Observability running".to_owned())));
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 10, dropped_spans: 0 });
    assert_eq!(running.world.dropped(DROPPED_SPAN), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_is_counted_and_told() {
    let (running, (), counts) = export(Does::Reject(3), PLENTY, async |running| {
        running.world.call(10);
        seconds(6).await;
        let (state, message) = running.world.health().unwrap();
        assert_eq!(state, State::Warning);
        assert!(message.ends_with("fails: 3 of 10 spans rejected: too many"), "{message}");
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 7, dropped_spans: 3 });
    assert_eq!(running.world.dropped(DROPPED_SPAN), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_dropped_at_once() {
    let (running, (), counts) = export(Does::Refuse(Again::Never), PLENTY, async |running| {
        running.world.call(10);
        seconds(6).await;
        assert_eq!((running.world.dropped(DROPPED_SPAN), running.collector.requests.lock().unwrap()[0]), (10, 10));
        assert_eq!(running.world.health().unwrap().0, State::Warning);
        // It is asked with nothing to lose whether it is back.
        *running.collector.does.lock().unwrap() = Does::Take;
        seconds(20).await;
        assert_eq!(running.world.health().unwrap().0, State::Healthy);
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 0, dropped_spans: 10 });
    let requests = running.collector.requests.lock().unwrap().clone();
    assert!(requests[1..].iter().all(|spans| *spans == 0) && (2..6).contains(&requests.len()), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn the_end_is_not_held_up() {
    let (running, (), counts) = export(Does::Hang, PLENTY, async |running| running.world.call(10)).await;
    assert_eq!(counts, Counts { exported_spans: 0, dropped_spans: 10 });
    assert_eq!(running.begun.elapsed(), FLUSH);
    let (running, (), counts) = export(Does::Take, PLENTY, async |running| running.world.call(10)).await;
    assert_eq!(counts, Counts { exported_spans: 10, dropped_spans: 0 });
    assert!(running.begun.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn a_million_spans_with_a_hanging_collector() {
    const SPANS: u64 = 1_000_000;
    let ((mut most, mut first), bytes) = ((0, 0), 2 << 20);
    let (running, (), counts) = export(Does::Hang, bytes, async |running| {
        for part in 0..1000 {
            running.world.call(SPANS / 1000);
            sleep(Duration::from_millis(100)).await;
            let resident = running.world.reader.usage().resident_bytes.unwrap_or(0);
            if part == 100 {
                first = resident;
            }
            most = most.max(resident);
        }
    })
    .await;
    assert_eq!(counts, Counts { exported_spans: 0, dropped_spans: SPANS });
    assert_eq!(running.world.dropped(DROPPED_SPAN), SPANS);
    // Other tests may run in this process; a million spans are some 600 MiB.
    assert!(most < first + (32 << 20), "memory grew from {first} to {most} bytes");
}
