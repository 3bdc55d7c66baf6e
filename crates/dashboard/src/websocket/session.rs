//! One socket.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use mcpscope_hub::{Event, Frame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_util::sync::CancellationToken;

use super::command::{Command, Topic};
use super::{EVENT, SILENT, SLOW};
use crate::publish::{self, Encoding, Publisher};
use crate::views;

/// How long a message may take to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// How long the end may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// From one ping to the next, at most.
const PING: Duration = Duration::from_secs(10);

/// Largest message of a client, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Most that waits to be sent, in bytes: one message, since the next is not made before it is gone.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Read at a time, in bytes; every socket has a buffer of this size.
const READ_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Session<S> {
    socket: WebSocketStream<S>,
    publisher: Publisher,
    encoding: Encoding,
    /// How long a client may say nothing at all.
    silence: Duration,
}

/// Why a session ends.
#[derive(Debug)]
enum End {
    /// The dashboard does.
    Stopping,
    /// The client said nothing for too long.
    Silent,
    /// The client took too long to take a message.
    Slow,
    /// The client broke a rule, and is told which.
    Refused(CloseCode, &'static str),
    /// The client closed it, or is gone.
    Gone,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        tracing::debug!(%error, "a WebSocket ended");
        match error {
            // What a stalled connection's writes end with.
            Error::Io(error) if error.kind() == ErrorKind::TimedOut => Self::Slow,
            Error::Capacity(_) => Self::Refused(CloseCode::Size, "expected messages of at most 64 KiB"),
            Error::Utf8(_) => Self::Refused(CloseCode::Invalid, "expected UTF-8"),
            Error::Protocol(_) => Self::Refused(CloseCode::Protocol, "expected frames as in RFC 6455"),
            _ => Self::Gone,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    pub(super) async fn new(stream: S, publisher: Publisher, encoding: Encoding, silence: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_WAITING_BYTES)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Self { socket, publisher, encoding, silence }
    }

    /// Serves the client until one of the two has enough.
    pub(super) async fn run(mut self, stopping: &CancellationToken) {
        let end = tokio::select! {
            biased;
            // Also while a message is being sent: the end is worth more than the rest of it.
            () = stopping.cancelled() => End::Stopping,
            Err(end) = self.talk() => end,
        };
        let reader = self.publisher.reader();
        match end {
            End::Silent => reader.dropped(SILENT),
            End::Slow => reader.dropped(SLOW),
            _ => {}
        }
        // Whoever has not answered by then is cut off.
        let _ = timeout(CLOSE_LIMIT, self.part(end)).await;
    }

    async fn talk(&mut self) -> Result<Infallible, End> {
        let (mut frames, mut events) = (self.publisher.reader().subscribe(), self.publisher.reader().events());
        let mut ping = pings(self.silence);
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                // In this order, so that a client that never stops asking still gets the rest, and is not called silent
                // while something of it is waiting to be read.
                biased;
                frame = frames.next() => self.push(frame).await?,
                Some((event, missed)) = events.next() => self.tell(&event, missed).await?,
                _ = ping.tick() => self.send(Message::Ping(Bytes::new())).await?,
                message = self.socket.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => self.answer(&text).await?,
                        // Nothing is asked that way.
                        Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                        Some(Ok(Message::Close(_))) | None => return Err(End::Gone),
                        Some(Err(error)) => return Err(error.into()),
                    }
                }
                () = sleep_until(heard + self.silence) => return Err(End::Silent),
            }
        }
    }

    /// The newest frame. A slow client has skipped those between.
    async fn push(&mut self, frame: Option<Arc<Frame>>) -> Result<(), End> {
        // Without a hub there is nothing more to come.
        frame.ok_or(End::Stopping)?;
        let message = self.publisher.message(Topic::Dashboard, self.encoding, None).await;
        self.send(message).await
    }

    async fn tell(&mut self, event: &Event, missed: u64) -> Result<(), End> {
        (0..missed).for_each(|_| self.publisher.reader().dropped(EVENT));
        match views::Happened::new(event) {
            Some(happened) => self.send(publish::event(&happened, self.encoding)).await,
            None => Ok(()),
        }
    }

    async fn answer(&mut self, text: &str) -> Result<(), End> {
        let reply = match Command::parse(text) {
            Ok(Command { topic, id }) => self.publisher.message(topic, self.encoding, id).await,
            Err(error) => Message::text(error.to_json()),
        };
        self.send(reply).await
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        match timeout(SEND_LIMIT, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(End::from),
            Err(_) => Err(End::Slow),
        }
    }

    /// Says why it ends.
    async fn part(&mut self, end: End) -> Result<(), Error> {
        let frame = match end {
            End::Stopping => Some((CloseCode::Away, "going away")),
            End::Silent => Some((CloseCode::Policy, "nothing heard, not even a pong")),
            End::Refused(code, reason) => Some((code, reason)),
            End::Slow => return Ok(()),
            End::Gone => None,
        };
        match frame {
            Some((code, reason)) => {
                self.socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
            }
            // The answer to the client's own close frame waits to be sent.
            None => self.socket.flush().await?,
        }
        // What the client had on its way is read, because closing before that would reset the connection, and a reset
        // overtakes the close frame.
        let stream = self.socket.get_mut();
        stream.shutdown().await?;
        let mut rest = [0; READ_BYTES];
        while stream.read(&mut rest).await? > 0 {}
        Ok(())
    }
}

/// Often enough that a client that answers is heard in time.
fn pings(silence: Duration) -> Interval {
    let period = PING.min(silence / 3).max(Duration::from_millis(1));
    let mut pings = interval_at(Instant::now() + period, period);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use mcpscope_core::ClockAnchor;
    use mcpscope_hub::metrics::Metrics;
    use mcpscope_hub::{Config, Sources, hub};
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinSet;
    use tokio::time::sleep;

    use super::*;

    const SILENCE: Duration = Duration::from_secs(30);

    /// A session over a pipe that holds this many bytes; frames are made every second. The clock stands still.
    struct Pipe {
        client: WebSocketStream<DuplexStream>,
        session: JoinSet<()>,
        metrics: Metrics,
        stopping: CancellationToken,
        _hub: JoinSet<()>,
    }

    impl Pipe {
        async fn of(bytes: usize) -> Self {
            let anchor = ClockAnchor { mono: Instant::now().into_std(), wall: SystemTime::UNIX_EPOCH };
            let metrics = Metrics::new(&Default::default(), anchor);
            for n in 0..50 {
                metrics.record("tool_call_duration_ms", 1.0, &[("tool", &format!("tool{n}"))], anchor.mono).unwrap();
            }
            let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
            let kept = Some(metrics.clone());
            let sources =
                Sources { metrics: kept, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
            let config = Config { update_interval: Duration::from_secs(1), ..Config::default() };
            let (hub, reader, _) = hub(sources, config);
            let mut running = JoinSet::new();
            running.spawn(hub.run());
            let (client, server) = duplex(bytes);
            let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
            let turn = reader.turn();
            let publisher = Publisher::new(reader, None, turn);
            let session = Session::new(server, publisher, Encoding::Text, SILENCE).await;
            let stopping = CancellationToken::new();
            let (mut sessions, token) = (JoinSet::new(), stopping.clone());
            sessions.spawn(async move { session.run(&token).await });
            Self { client, session: sessions, metrics, stopping, _hub: running }
        }

        fn dropped(&self, what: &str) -> bool {
            let page = self.metrics.snapshot(Instant::now().into_std()).to_prometheus();
            page.contains(&format!("mcpscope_dropped_total{{what=\"{what}\"}} 1"))
        }

        /// When the frame was made that comes next, in ms.
        async fn frame(&mut self) -> u64 {
            loop {
                let message = self.client.next().await.unwrap().unwrap();
                if let Message::Text(text) = message {
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    return value["data"]["timestamp"].as_u64().unwrap();
                }
            }
        }

        async fn close_code(&mut self) -> CloseCode {
            loop {
                if let Message::Close(frame) = self.client.next().await.unwrap().unwrap() {
                    return frame.unwrap().code;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_closed_after_the_silence() {
        // Large enough that nothing of it has to be read.
        let mut pipe = Pipe::of(64 << 20).await;
        let start = Instant::now();
        pipe.session.join_next().await.unwrap().unwrap();
        let took = start.elapsed();
        assert!(took >= SILENCE && took <= SILENCE + CLOSE_LIMIT + PING, "{took:?}");
        assert!(pipe.dropped(SILENT));
        assert!(!pipe.dropped(SLOW));
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_pings_may_stay() {
        let mut pipe = Pipe::of(64 << 10).await;
        let start = Instant::now();
        while start.elapsed() < 20 * SILENCE {
            pipe.frame().await;
        }
        assert!(!pipe.dropped(SILENT) && !pipe.dropped(SLOW));
        pipe.stopping.cancel();
        assert_eq!(pipe.close_code().await, CloseCode::Away);
        drop(pipe.client);
        pipe.session.join_next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_a_message_is_dropped() {
        let mut pipe = Pipe::of(256).await;
        let start = Instant::now();
        // It says something all the time, which does not help.
        let (mut session, chatter) = (std::mem::take(&mut pipe.session), async {
            loop {
                let _ = pipe.client.feed(Message::text("[]")).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
        tokio::select! {
            ended = session.join_next() => ended.unwrap().unwrap(),
            () = chatter => {}
        }
        assert!(start.elapsed() >= SEND_LIMIT && start.elapsed() < 2 * SEND_LIMIT, "{:?}", start.elapsed());
        assert!(pipe.dropped(SLOW));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_gets_the_newest_frame_and_no_backlog() {
        let mut pipe = Pipe::of(256).await;
        let mut before = pipe.frame().await;
        // From here on between two frames, so that it is sure which one is the newest.
        sleep(Duration::from_millis(500)).await;
        for _ in 0..10 {
            sleep(Duration::from_secs(4)).await;
            // The one that was on its way; then what is newest.
            let stale = pipe.frame().await;
            let newest = pipe.frame().await;
            assert!(stale <= before + 1000 && newest >= stale + 3000, "{before} {stale} {newest}");
            before = newest;
        }
        assert!(!pipe.dropped(SLOW));
    }
}
