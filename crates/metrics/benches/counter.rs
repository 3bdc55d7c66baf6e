//! What adding one to a counter costs: through a handle, at a call site with literal labels, and by name with labels that are
//! known at run time only.

mod support;

use std::array;
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use lasso::{Rodeo, RodeoReader, ThreadedRodeo};
use mcpscope_metrics::{Config, Declared, Kind};
use mcpscope_test_support::bench::{self, Race, Report, Table};
use measured::{CounterVec, FixedCardinalityLabel, LabelGroup};
use prometheus::{IntCounter, IntCounterVec, Opts};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use support::{Error, KEYS, Labels, OpenTelemetry, attributes, exporter, pairs};

fn main() -> Result<(), Error> {
    if !bench::wanted() {
        return Ok(());
    }
    metrics::set_global_recorder(exporter()?)?;
    let mut report = Report::new("counter");
    for threads in [1, 2] {
        report.add(handle(threads)?);
        report.add(literal_labels(threads)?);
        report.add(dynamic_labels(threads, Order::InTurn)?);
        report.add(dynamic_labels(threads, Order::Random)?);
    }
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

thread_local! {
    static OWN: Cell<u64> = const { Cell::new(0) };
}

fn handle(threads: usize) -> Result<Table, Error> {
    let (metrics, now) = support::metrics(Config::default());
    let ours = metrics.counter("calls", &pairs(["echo", "tools/call", "ok"]))?;
    let client = Counter::<u64>::default();
    let prometheus = IntCounter::new("calls", "Calls")?;
    let facade = metrics::counter!("handle", "tool" => "echo", "method" => "tools/call", "outcome" => "ok");
    let otel = OpenTelemetry::new();
    let bound = otel.meter.u64_counter("calls").build().bind(&attributes(["echo", "tools/call", "ok"]));
    let shared = AtomicU64::new(0);
    Ok(Race::new("B1 counter +1, handle", threads)
        .case("mcpscope", || black_box(&ours).increment(now))
        .case("prometheus-client", || black_box(&client).inc())
        .case("prometheus", || black_box(&prometheus).inc())
        .case("metrics over its exporter", || black_box(&facade).increment(1))
        .case("OpenTelemetry, bound", || black_box(&bound).add(1))
        .case("mcpscope, reading the clock for it", || black_box(&ours).increment(Instant::now()))
        .case("floor: relaxed fetch_add", || black_box(&shared).fetch_add(1, Relaxed))
        .case("floor: thread-local cell", || OWN.with(|own| black_box(own).set(own.get() + 1)))
        .run())
}

fn literal_labels(threads: usize) -> Result<Table, Error> {
    let (metrics, now) = support::metrics(Config::default());
    Ok(Race::new("B2 counter +1, three literal labels at the call site", threads)
        .case("mcpscope counter!", || {
            mcpscope_metrics::counter!(metrics, "literal", "tool" => "echo", "method" => "tools/call", "outcome" => "ok")
                .increment(now);
        })
        .case("metrics::counter! over its exporter", || {
            metrics::counter!("literal", "tool" => "echo", "method" => "tools/call", "outcome" => "ok").increment(1);
        })
        .run())
}

/// In which order the sets of labels come.
#[derive(Clone, Copy)]
enum Order {
    InTurn,
    Random,
}

impl Order {
    /// So many that no processor knows them by heart.
    const NUMBERS: u64 = 1 << 16;

    fn numbers(self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(1);
        let of = |number: u64| match self {
            Self::InTurn => number as u8 % SETS as u8,
            Self::Random => random.u8(..SETS as u8),
        };
        (0..Self::NUMBERS).map(of).collect()
    }
}

fn dynamic_labels(threads: usize, order: Order) -> Result<Table, Error> {
    let (sets, numbers) = (label_sets(), order.numbers());
    let at = |number: u64| usize::from(numbers[(number % Order::NUMBERS) as usize]);
    let set = |number: u64| black_box(&sets[at(number)]).each_ref().map(String::as_str);
    let (metrics, now) = support::metrics(Config::default());
    metrics.declare(&Declared::new("dynamic", Kind::Counter, "Calls")?)?;
    let prometheus = IntCounterVec::new(Opts::new("calls", "Calls"), &KEYS)?;
    let client = Family::<Labels, Counter>::default();
    let tools = Rodeo::from_iter(TOOLS).into_reader();
    let dense = CounterVec::dense_with_label_set(CallSet::new(tools));
    let sparse = CounterVec::sparse_with_label_set(DynamicSet::new(
        ThreadedRodeo::default(),
        ThreadedRodeo::default(),
        ThreadedRodeo::default(),
    ));
    let otel = OpenTelemetry::new();
    let calls = otel.meter.u64_counter("calls").build();
    let built = sets.each_ref().map(|set| attributes(set.each_ref().map(String::as_str)));
    let title = match order {
        Order::InTurn => "B3 counter +1 by name, three dynamic labels of 16 sets in turn",
        Order::Random => "B3 the same in random order",
    };
    Ok(Race::new(title, threads)
        .numbered_case("mcpscope", |number| metrics.record("dynamic", 1.0, &pairs(set(number)), now))
        .numbered_case("prometheus, with_label_values", |number| prometheus.with_label_values(&set(number)).inc())
        .numbered_case("prometheus-client Family, String labels", |number| {
            client.get_or_create(&Labels::new(set(number))).inc();
        })
        .numbered_case("measured, dense: 2 enums and 1 fixed string set", |number| {
            let [tool, ..] = set(number);
            let method = [Method::Call, Method::Get][at(number) / 4 % 2];
            let outcome = [CallOutcome::Ok, CallOutcome::Error][at(number) / 8];
            dense.inc(Call { tool, method, outcome });
        })
        .numbered_case("measured, sparse: 3 open string sets", |number| {
            let [tool, method, outcome] = set(number);
            sparse.inc(Dynamic { tool, method, outcome });
        })
        .numbered_case("OpenTelemetry add", |number| calls.add(1, &attributes(set(number))))
        .numbered_case("OpenTelemetry add, KeyValues kept", |number| {
            calls.add(1, &built[at(number)]);
        })
        .numbered_case("metrics::counter! over its exporter, String", |number| {
            let [tool, method, outcome] = set(number).map(str::to_owned);
            metrics::counter!("dynamic", "tool" => tool, "method" => method, "outcome" => outcome).increment(1);
        })
        .run())
}

const TOOLS: [&str; 4] = ["search_documents", "read_file", "list_issues", "create_pull_request"];
const METHODS: [&str; 2] = ["tools/call", "prompts/get"];
const OUTCOMES: [&str; 2] = ["ok", "error"];
const SETS: usize = 16;

/// Sixteen, each value in memory of its own.
fn label_sets() -> [[String; 3]; SETS] {
    let of = |number: usize| [TOOLS[number % 4], METHODS[number / 4 % 2], OUTCOMES[number / 8]];
    array::from_fn(|number| of(number).map(str::to_owned))
}

#[derive(Clone, Copy, LabelGroup)]
#[label(set = CallSet)]
struct Call<'a> {
    #[label(fixed_with = RodeoReader)]
    tool: &'a str,
    method: Method,
    outcome: CallOutcome,
}

#[derive(Clone, Copy, LabelGroup)]
#[label(set = DynamicSet)]
struct Dynamic<'a> {
    #[label(dynamic_with = ThreadedRodeo)]
    tool: &'a str,
    #[label(dynamic_with = ThreadedRodeo)]
    method: &'a str,
    #[label(dynamic_with = ThreadedRodeo)]
    outcome: &'a str,
}

#[derive(Clone, Copy, FixedCardinalityLabel)]
enum Method {
    Call,
    Get,
}

#[derive(Clone, Copy, FixedCardinalityLabel)]
enum CallOutcome {
    Ok,
    Error,
}
