//! Whole exports, to collectors that do as they are told, on a clock that stands still.

use std::collections::VecDeque;
use std::time::Duration;

use mcpscope_health::State;
use tokio::time::{Instant, sleep};

use super::*;
use crate::testing::World;

struct Scripted {
    answers: Mutex<VecDeque<Result<Accepted, Refusal>>>,
    /// When there was a request, in milliseconds from the start, and of how many metrics.
    requests: Mutex<Vec<(u128, usize)>>,
    begun: Instant,
}

impl Collector for Arc<Scripted> {
    type Request = ExportMetricsServiceRequest;

    async fn send(&self, request: Self::Request) -> Result<Accepted, Refusal> {
        let metrics = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).map(|scope| scope.metrics.len());
        self.requests.lock().unwrap().push((self.begun.elapsed().as_millis(), metrics.sum()));
        self.answers.lock().unwrap().pop_front().unwrap_or_else(|| Ok(Accepted::default()))
    }
}

async fn export(
    answers: impl IntoIterator<Item = Result<Accepted, Refusal>>,
    work: impl AsyncFnOnce(&World),
) -> (World, Vec<(u128, usize)>) {
    let world = World::new(1 << 20);
    let answers = Mutex::new(answers.into_iter().collect());
    let collector = Arc::new(Scripted { answers, requests: Mutex::default(), begun: Instant::now() });
    let (ends, ending) = Ending::new();
    let condition = Condition::new(world.reporter.clone(), world.reader.clone());
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:1"), ("OTEL_METRIC_EXPORT_INTERVAL", "20000")];
    let service = crate::Service { version: String::new(), instance_id: String::new() };
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = crate::Config::read(&crate::Settings::default(), &service, variables).0.metrics.unwrap();
    world.reader.may_drop(DROPPED_POINT);
    let export = Export::new(&config, Arc::clone(&collector), Resource::default(), &world.reader, &condition);
    let work = async {
        work(&world).await;
        ends.begin();
    };
    tokio::join!(export.run(ending), work);
    let requests = collector.requests.lock().unwrap().clone();
    (world, requests)
}

#[tokio::test(start_paused = true)]
async fn at_each_interval_and_at_the_end() {
    let (world, requests) = export([], async |_| sleep(Duration::from_secs(50)).await).await;
    assert_eq!(requests.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [20_000, 40_000, 50_000]);
    assert!(requests.iter().all(|(_, metrics)| *metrics > 0), "{requests:?}");
    assert_eq!((world.health(), world.dropped(DROPPED_POINT)), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_told_tried_again_and_told() {
    let again = |seconds| Err(Refusal::new("busy", Again::After(Duration::from_secs(seconds))));
    let (_, requests) = export([again(7)], async |world| {
        sleep(Duration::from_secs(25)).await;
        let (state, message) = world.health().unwrap();
        assert_eq!(state, State::Warning);
        assert!(message.ends_with("exporting metrics to collector:1 fails: busy"), "{message}");
        sleep(Duration::from_secs(5)).await;
        assert_eq!(world.health().unwrap().0, State::Healthy);
    })
    .await;
    assert_eq!(requests.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [20_000, 27_000, 30_000]);
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_is_counted() {
    let rejected = Accepted { rejected: 4, message: "too old".to_owned() };
    let (world, requests) = export([Ok(rejected)], async |world| {
        sleep(Duration::from_secs(25)).await;
        assert!(world.health().unwrap().1.ends_with("fails: 4 data points rejected: too old"));
    })
    .await;
    assert_eq!((requests.len(), world.dropped(DROPPED_POINT)), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn no_more_can_be_rejected_than_there_were() {
    let rejected = Accepted { rejected: i64::MAX as u64, message: String::new() };
    let (world, requests) = export([Ok(rejected)], async |world| {
        sleep(Duration::from_secs(25)).await;
        assert_eq!(world.health().unwrap().0, State::Warning);
    })
    .await;
    // Each metric has some points, and none of them many.
    let (dropped, metrics) = (world.dropped(DROPPED_POINT), requests[0].1 as u64);
    assert!((metrics..metrics * 100).contains(&dropped), "{dropped} points of {metrics} metrics");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_or_given_up_is_counted_whole() {
    let refused = || Err(Refusal::new("401 Unauthorized", Again::Never));
    let (world, requests) = export([refused(), refused()], async |_| sleep(Duration::from_secs(45)).await).await;
    let of_two = world.dropped(DROPPED_POINT);
    let metrics = (requests[0].1 + requests[1].1) as u64;
    assert!(of_two >= metrics, "{of_two} points of {metrics} metrics");
    // Tried again until the end, it is counted once.
    let away = std::iter::repeat_with(|| Err(Refusal::new("nothing listens there", Again::Later)));
    let (world, requests) = export(away.take(100), async |_| sleep(Duration::from_secs(25)).await).await;
    assert!(requests.len() > 1, "{requests:?}");
    assert_eq!(world.dropped(DROPPED_POINT), of_two / 2);
}
