//! What is sent of a frame, made once for all who get it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use mcpscope_hub::{Chaos, Frame, Reader, Turn};
use serde::Serialize;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::compress::{self, Compression, MIN_BYTES};
use crate::views;
use crate::websocket::Topic;

/// How a socket's messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// All as text.
    Text,
    /// The large ones as gzip, in binary messages.
    Gzip,
}

/// Gives out the newest frame in the form in which it is sent. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Publisher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reader: Reader,
    chaos: Option<Chaos>,
    turn: Turn,
    newest: Mutex<Arc<Edition>>,
}

/// A frame, and what was made of it so far: each part at most once, by whoever needs it first.
#[derive(Debug)]
pub(crate) struct Edition {
    frame: Arc<Frame>,
    made: [Made; 2],
}

/// What is sent of a frame.
#[derive(Clone, Copy, Debug)]
enum Part {
    Dashboard,
    Metrics,
}

#[derive(Debug, Default)]
struct Made {
    text: OnceLock<Utf8Bytes>,
    gzip: OnceLock<Message>,
}

impl Publisher {
    pub(crate) fn new(reader: Reader, chaos: Option<Chaos>, turn: Turn) -> Self {
        let newest = Mutex::new(Arc::new(Edition::new(reader.frame())));
        Self(Arc::new(Shared { reader, chaos, turn, newest }))
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// The newest frame.
    pub(crate) fn newest(&self) -> Arc<Edition> {
        let frame = self.0.reader.frame();
        // Every change is a single assignment: a panic in another holder leaves nothing half done.
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.frame.sequence < frame.sequence {
            *newest = Arc::new(Edition::new(frame));
        }
        Arc::clone(&newest)
    }

    /// What there is to say on a topic as a message, with the id that it answers to.
    pub(crate) async fn message(&self, topic: Topic, encoding: Encoding, id: Option<&str>) -> Message {
        let part = match topic {
            Topic::Dashboard => Part::Dashboard,
            Topic::Metrics => Part::Metrics,
            // Not the newest frame's: an event may have told of something newer.
            Topic::Health => return reply(topic, &views::Health::from(&self.reader().health()), encoding, id),
            Topic::Chaos => {
                let status = match &self.0.chaos {
                    Some(chaos) => Some(chaos.status().await),
                    None => None,
                };
                return reply(topic, &status, encoding, id);
            }
        };
        let edition = self.newest();
        if let Some(message) = edition.ready(part, encoding, id) {
            return message;
        }
        let id = id.map(str::to_owned);
        self.0.turn.work(move || edition.message(part, encoding, id.as_deref())).await
    }
}

impl Part {
    const fn topic(self) -> Topic {
        match self {
            Self::Dashboard => Topic::Dashboard,
            Self::Metrics => Topic::Metrics,
        }
    }
}

impl Edition {
    fn new(frame: Arc<Frame>) -> Self {
        Self { frame, made: Default::default() }
    }

    /// The dashboard's data alone, as JSON.
    pub(crate) fn dashboard(&self) -> Bytes {
        let text = Bytes::from(self.text(Part::Dashboard).clone());
        text.slice(opening(Topic::Dashboard).len()..text.len() - 1)
    }

    /// The message, if that is no work: all of it has been made before, or is copied together from what has.
    fn ready(&self, part: Part, encoding: Encoding, id: Option<&str>) -> Option<Message> {
        let made = self.of(part);
        let text = made.text.get()?;
        match (encoding, id) {
            (Encoding::Gzip, _) if text.len() > MIN_BYTES => made.gzip.get().filter(|_| id.is_none()).cloned(),
            (_, None) => Some(Message::Text(text.clone())),
            (_, Some(id)) => Some(Message::Text(with_id(part.topic(), text, id).into())),
        }
    }

    fn message(&self, part: Part, encoding: Encoding, id: Option<&str>) -> Message {
        let text = self.text(part);
        match (encoding, id) {
            (Encoding::Text, None) => Message::Text(text.clone()),
            (Encoding::Gzip, None) => self.of(part).gzip.get_or_init(|| message(text.clone(), encoding)).clone(),
            (_, Some(id)) => message(with_id(part.topic(), text, id).into(), encoding),
        }
    }

    fn text(&self, part: Part) -> &Utf8Bytes {
        self.of(part).text.get_or_init(|| match part {
            Part::Dashboard => whole(part.topic(), &views::Dashboard::from(&*self.frame)),
            Part::Metrics => whole(part.topic(), &views::Metrics::all(&self.frame)),
        })
    }

    fn of(&self, part: Part) -> &Made {
        &self.made[part as usize]
    }
}

/// What is small enough to be made for each who asks.
fn reply(topic: Topic, data: &impl Serialize, encoding: Encoding, id: Option<&str>) -> Message {
    let text = whole(topic, data);
    message(id.map_or_else(|| text.clone(), |id| with_id(topic, &text, id).into()), encoding)
}

/// Something that happened, as a message.
pub(crate) fn event(happened: &views::Happened<'_>, encoding: Encoding) -> Message {
    message(format!("{{\"type\":\"event\",\"data\":{}}}", json(happened)).into(), encoding)
}

fn whole(topic: Topic, data: &impl Serialize) -> Utf8Bytes {
    format!("{}{}}}", opening(topic), json(data)).into()
}

fn opening(topic: Topic) -> String {
    format!("{{\"type\":\"{}\",\"data\":", topic.as_str())
}

/// The message again, with the id before the data.
fn with_id(topic: Topic, text: &str, id: &str) -> String {
    let name = topic.as_str();
    let data = text.get(opening(topic).len()..).unwrap_or_default();
    let mut whole = String::with_capacity(text.len() + id.len() + 8);
    [r#"{"type":""#, name, r#"","id":"#, id, r#","data":"#, data].into_iter().for_each(|part| whole.push_str(part));
    whole
}

fn message(text: Utf8Bytes, encoding: Encoding) -> Message {
    if encoding == Encoding::Text || text.len() <= MIN_BYTES {
        return Message::Text(text);
    }
    // Writing to memory does not fail.
    compress::gzip(text.as_bytes(), Compression::fast()).map_or(Message::Text(text), Message::Binary)
}

fn json(view: &impl Serialize) -> String {
    // Names, texts and numbers: there is nothing in the views that serde_json could refuse.
    serde_json::to_string(view).unwrap_or_else(|_| "null".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use mcpscope_core::ClockAnchor;
    use mcpscope_hub::metrics::Metrics;
    use mcpscope_hub::{Config, Hub, Sources, hub};

    use super::*;

    /// A hub whose frames are larger than what is worth compressing.
    fn publisher() -> (Hub, Publisher) {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let metrics = Metrics::new(&Default::default(), anchor);
        for n in 0..50 {
            metrics.record("tool_call_duration_ms", 1.0, &[("tool", &format!("tool{n}"))], anchor.mono).unwrap();
        }
        let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
        let sources = Sources {
            metrics: Some(metrics),
            tracer: None,
            reporter,
            health,
            instrumentation: None,
            chaos: None,
            anchor,
        };
        let (hub, reader, _) = hub(sources, Config::default());
        let turn = reader.turn();
        (hub, Publisher::new(reader, None, turn))
    }

    /// With the first frame that has metrics in it.
    async fn after_a_tick() -> (Publisher, tokio::task::JoinSet<()>) {
        let (hub, publisher) = publisher();
        let mut frames = publisher.reader().subscribe();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(hub.run());
        while frames.next().await.unwrap().sequence == 0 {}
        (publisher, tasks)
    }

    fn bytes(message: &Message) -> &[u8] {
        match message {
            Message::Text(text) => text.as_ref(),
            Message::Binary(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn unpacked(message: &Message) -> serde_json::Value {
        match message {
            Message::Text(text) => serde_json::from_str(text).unwrap(),
            other => serde_json::from_reader(flate2::read::GzDecoder::new(bytes(other))).unwrap(),
        }
    }

    #[tokio::test]
    async fn each_frame_is_encoded_once_for_all() {
        let (publisher, _hub) = after_a_tick().await;
        for encoding in [Encoding::Text, Encoding::Gzip] {
            for topic in [Topic::Dashboard, Topic::Metrics] {
                let all = (0..100).map(|_| publisher.message(topic, encoding, None));
                let all = futures_util::future::join_all(all).await;
                // All of them are the same bytes in the same place.
                assert!(all.iter().all(|message| bytes(message).as_ptr() == bytes(&all[0]).as_ptr()));
                assert_eq!(matches!(all[0], Message::Binary(_)), encoding == Encoding::Gzip);
                assert_eq!(unpacked(&all[0])["type"], topic.as_str());
            }
        }
        let text = publisher.message(Topic::Dashboard, Encoding::Text, None).await;
        let data = publisher.newest().dashboard();
        assert!(bytes(&text).as_ptr_range().contains(&data.as_ptr()), "the plain answer is a part of it");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&data).unwrap(), unpacked(&text)["data"]);
    }

    #[tokio::test]
    async fn metrics_have_all_series_and_the_dashboard_the_most_active() {
        let (publisher, _hub) = after_a_tick().await;
        let series = async |topic| -> Vec<usize> {
            let data = unpacked(&publisher.message(topic, Encoding::Text, None).await)["data"].take();
            let metrics = if topic == Topic::Dashboard { &data["metrics"] } else { &data };
            let all = metrics.as_object().unwrap().values();
            all.filter_map(|metric| metric.get("series")).map(|series| series.as_array().unwrap().len()).collect()
        };
        assert!(series(Topic::Metrics).await.contains(&50), "one for each tool");
        assert_eq!(series(Topic::Dashboard).await.iter().sum::<usize>(), 50);
    }

    #[tokio::test]
    async fn an_id_is_put_around_the_same_data() {
        let (publisher, _hub) = after_a_tick().await;
        for topic in Topic::ALL {
            // Of health the moment is told in which it was asked for.
            let timeless = |mut reply: serde_json::Value| {
                if let Some(data) = reply["data"].as_object_mut().filter(|_| topic == Topic::Health) {
                    assert!(data.remove("timestamp").is_some() && data.remove("uptime").is_some());
                }
                reply
            };
            let plain = timeless(unpacked(&publisher.message(topic, Encoding::Text, None).await));
            for (encoding, id) in [(Encoding::Text, "7"), (Encoding::Gzip, r#""a\"b""#), (Encoding::Text, "-1e5")] {
                let message = publisher.message(topic, encoding, Some(id)).await;
                let mut reply = timeless(unpacked(&message));
                let found = reply.as_object_mut().unwrap().remove("id");
                assert_eq!(found, serde_json::from_str(id).ok());
                assert_eq!(reply, plain);
                let large = [Topic::Dashboard, Topic::Metrics].contains(&topic);
                assert_eq!(matches!(message, Message::Binary(_)), encoding == Encoding::Gzip && large);
            }
        }
    }

    #[tokio::test]
    async fn before_the_first_tick_there_is_little_to_say() {
        let (_hub, publisher) = publisher();
        let text = publisher.message(Topic::Dashboard, Encoding::Gzip, None).await;
        assert!(matches!(text, Message::Text(_)), "it is small");
        let data = &unpacked(&text)["data"];
        assert_eq!(
            data["metrics"].as_object().unwrap().keys().collect::<Vec<_>>(),
            ["cpu_usage", "memory_usage", "system_uptime", "timestamp"]
        );
        assert_eq!(data["system_health"]["overall"], "healthy");
        assert_eq!(data["system_health"]["components"], serde_json::json!({}));
        for empty in ["traces", "alerts", "processes"] {
            assert_eq!(data[empty], serde_json::json!([]), "{empty}");
        }
        for unknown in ["chaos_status", "memory_usage", "memory_ratio", "cpu_usage"] {
            assert_eq!(data.get(unknown), Some(&serde_json::Value::Null), "{unknown}");
        }
    }
}
