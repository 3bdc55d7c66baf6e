//! The spans and events of an ordinary program (`tracing`), in the same store.

use std::fmt::{self, Debug, Write as _};

use mcpscope_core::{Component, bounded};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use crate::packed::MAX_VALUE_BYTES;
use crate::record::{SpanKind, Status, Value};
use crate::span::SpanGuard;
use crate::tracer::Tracer;
use crate::value::ValueRef;

/// Fields that say something of the span itself, by the names that others have made usual.
mod otel {
    pub(super) const NAME: &str = "otel.name";
    pub(super) const KIND: &str = "otel.kind";
    pub(super) const STATUS: &str = "otel.status_code";
    pub(super) const DESCRIPTIONS: [&str; 2] = ["otel.status_description", "otel.status_message"];
}

/// A layer that records what a program tells with the crate `tracing`: its spans with their fields, and its events as events of
/// the span that they happen in. An event outside of any span is not recorded.
///
/// A span without a parent begins a trace, of which the tracer's [sampling rate](crate::Config::sampling_rate) keeps its share;
/// its children go with it. It lasts until it is closed, however often it is entered on the way, so spans of futures and tasks are
/// what they should be. Which spans and events are recorded is the business of filters, as with any other layer.
///
/// Fields become attributes of their own type, what only has `Debug` becomes text. An event of the level `ERROR` makes the span an
/// error, with what it says as the message. `otel.name`, `otel.kind` (`server`, `client`, `internal`), `otel.status_code` (`ok`,
/// `error`) and `otel.status_description` name the span and say how it ended. What a span may hold is limited as ever.
///
/// A subscriber has one such layer.
///
/// ```
/// use std::time::{Instant, SystemTime};
/// use mcpscope_core::{ClockAnchor, Ratio};
/// use mcpscope_tracing::{Config, Filter, Status, Tracer};
/// use tracing_subscriber::filter::LevelFilter;
/// use tracing_subscriber::{Layer as _, layer::SubscriberExt as _};
///
/// let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
/// let tracer = Tracer::new(&Config { sampling_rate: Ratio::ONE, ..Config::default() }, anchor, 42);
/// let layer = mcpscope_tracing::layer(tracer.clone()).with_filter(LevelFilter::INFO);
/// let subscriber = tracing_subscriber::registry().with(layer);
///
/// // An ordinary program would make it the default of all threads.
/// tracing::subscriber::with_default(subscriber, || {
///     let order = tracing::info_span!("order", items = 3).entered();
///     tracing::info_span!("pay").in_scope(|| tracing::error!(attempt = 1, "no answer"));
///     drop(order);
/// });
///
/// let trace = &tracer.traces(&Filter::default())[0];
/// assert_eq!((&*trace.operation, trace.spans.len()), ("order", 2));
/// let pay = &trace.spans[1];
/// assert_eq!((pay.parent, pay.status), (Some(trace.spans[0].id), Status::Error));
/// assert_eq!((pay.message.as_deref(), &*pay.events[0].name), (Some("no answer"), "no answer"));
/// ```
pub fn layer<S>(tracer: Tracer) -> impl Layer<S>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    TracerLayer { tracer }
}

struct TracerLayer {
    tracer: Tracer,
}

/// What the registry keeps with a span.
struct Open {
    guard: SpanGuard<'static>,
    /// Whether it is known what went wrong: the first word is the one that counts.
    explained: bool,
}

impl<S> Layer<S> for TracerLayer
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let metadata = attributes.metadata();
        let mut name = None;
        if metadata.fields().field(otel::NAME).is_some() {
            attributes.record(&mut Each(|field: &'static str, value: ValueRef<'_>| {
                if let (otel::NAME, ValueRef::Str(text)) = (field, value) {
                    name = Some(text.to_owned());
                }
            }));
        }
        let mut open = Open { guard: self.begin(&span, name.as_deref().unwrap_or(metadata.name())), explained: false };
        if open.guard.is_recorded() {
            open.guard.attribute("target", metadata.target());
            attributes.record(&mut Each(|field: &'static str, value: ValueRef<'_>| open.tell(field, value)));
        }
        span.extensions_mut().replace(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id).filter(is_recorded) else { return };
        // Before the span is locked: a `Debug` of the program's may tell something of the same span.
        let mut fields = Vec::new();
        values.record(&mut Each(|field: &'static str, value: ValueRef<'_>| fields.push((field, owned(value)))));
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            fields.iter().for_each(|(field, value)| open.tell(field, value.into()));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event).filter(is_recorded) else { return };
        let (mut message, mut fields) = (None, Vec::new());
        event.record(&mut Each(|field: &'static str, value: ValueRef<'_>| match (field, value) {
            ("message", ValueRef::Str(text)) => message = Some(bounded(text, MAX_VALUE_BYTES).to_owned()),
            _ => fields.push((field, owned(value))),
        }));
        let metadata = event.metadata();
        let said = fields.iter().find_map(|(field, value)| match (*field, value) {
            ("error" | "err", Value::Str(text)) => Some(&**text),
            _ => None,
        });
        let name = message.as_deref().unwrap_or(metadata.name());
        let known = [("level", metadata.level().as_str().into()), ("target", metadata.target().into())];
        let fields = fields.iter().map(|(field, value)| (*field, value.into()));
        let attributes: Vec<(&str, ValueRef<'_>)> = known.into_iter().chain(fields).collect();
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            open.guard.event(name, &attributes);
            if *metadata.level() == Level::ERROR {
                open.guard.status(Status::Error);
                open.explain(message.as_deref().or(said).unwrap_or(name));
            }
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let open = context.span(&id).and_then(|span| span.extensions_mut().remove::<Open>());
        // It ends here, when the span is not locked any more.
        drop(open);
    }
}

impl TracerLayer {
    fn begin<S>(&self, span: &SpanRef<'_, S>, name: &str) -> SpanGuard<'static>
    where
        S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    {
        let below = |above: SpanRef<'_, S>| above.extensions().get::<Open>().map(|open| open.guard.child(name));
        // What an embedding program does is on none of the critical paths.
        let root = || self.tracer.span(Component::Tools, name, None).into_owned();
        span.scope().skip(1).find_map(below).unwrap_or_else(root)
    }
}

fn is_recorded<S>(span: &SpanRef<'_, S>) -> bool
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    span.extensions().get::<Open>().is_some_and(|open| open.guard.is_recorded())
}

impl Open {
    /// Takes a field of the span.
    fn tell(&mut self, field: &'static str, value: ValueRef<'_>) {
        match (field, value) {
            (otel::NAME, _) => {}
            (otel::KIND, ValueRef::Str(text)) => {
                let kinds = [SpanKind::Server, SpanKind::Client, SpanKind::Internal];
                if let Some(kind) = kinds.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text)) {
                    self.guard.kind(kind);
                }
            }
            (otel::STATUS, ValueRef::Str(text)) => {
                if let Some(status) = Status::parse(&text.to_ascii_lowercase()) {
                    self.guard.status(status);
                }
            }
            (field, ValueRef::Str(text)) if otel::DESCRIPTIONS.contains(&field) => self.explain(text),
            (field, value) => {
                self.guard.attribute(field, value);
            }
        }
    }

    fn explain(&mut self, message: &str) {
        if !std::mem::replace(&mut self.explained, true) {
            self.guard.message(message);
        }
    }
}

fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Str(text) => Value::Str(bounded(text, MAX_VALUE_BYTES).into()),
        ValueRef::Int(number) => Value::Int(number),
        ValueRef::Float(number) => Value::Float(number),
        ValueRef::Bool(yes) => Value::Bool(yes),
    }
}

/// Does the same with each field.
struct Each<F>(F);

impl<F: FnMut(&'static str, ValueRef<'_>)> Visit for Each<F> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        (self.0)(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        (self.0)(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        (self.0)(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        (self.0)(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        (self.0)(field.name(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = Start(String::new());
        // It stops where there is no more room.
        let _ = write!(text, "{value:?}");
        (self.0)(field.name(), text.0.as_str().into());
    }
}

/// The first bytes of a text, as many as a value may have.
struct Start(String);

impl fmt::Write for Start {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let part = bounded(text, MAX_VALUE_BYTES - self.0.len());
        self.0.push_str(part);
        if part.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
