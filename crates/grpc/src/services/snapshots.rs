//! The newest frame as the message that is sent, made once for all who get it.

use std::sync::Arc;

use mcpscope_hub::{Reader, Turn};
use prost::Message as _;
use tokio::sync::Mutex;
use tokio::task::yield_now;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::Bytes;
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::proto::{Dashboard, GetSnapshotRequest, GetSnapshotResponse};

/// Gives out the newest frame. Cheap to clone; the clones share what was made.
#[derive(Clone, Debug)]
pub(super) struct Snapshots {
    reader: Reader,
    turn: Turn,
    newest: Arc<Mutex<Option<Snapshot>>>,
}

/// A frame, encoded.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) sequence: u64,
    /// `GetSnapshotResponse`, which is also `WatchSnapshotsResponse`.
    pub(super) message: Bytes,
}

impl Snapshots {
    pub(super) fn new(reader: Reader, turn: Turn) -> Self {
        Self { reader, turn, newest: Arc::default() }
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The newest frame. Who asks waits for those who asked before, and each time everything else on this thread has its
    /// turn: to send a snapshot is work too, and many may ask.
    pub(super) async fn newest(&self) -> Snapshot {
        let mut newest = self.newest.lock().await;
        yield_now().await;
        let frame = self.reader.frame();
        if let Some(made) = newest.as_ref().filter(|made| made.sequence >= frame.sequence) {
            return made.clone();
        }
        let sequence = frame.sequence;
        let message = self.turn.work(move || {
            let dashboard = Some(Dashboard::from(&*frame));
            GetSnapshotResponse { dashboard }.encode_to_vec().into()
        });
        newest.insert(Snapshot { sequence, message: message.await }).clone()
    }
}

/// Sends messages that are encoded already, in answer to `R`.
#[derive(Debug)]
pub(super) struct Encoded<R>(ProstCodec<GetSnapshotRequest, R>);

impl<R: prost::Message + Default + Send + 'static> Encoded<R> {
    pub(super) fn new() -> Self {
        Self(ProstCodec::new())
    }
}

impl<R: prost::Message + Default + Send + 'static> Codec for Encoded<R> {
    type Encode = Bytes;
    type Decode = R;
    type Encoder = Put;
    type Decoder = ProstDecoder<R>;

    fn encoder(&mut self) -> Put {
        Put
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.0.decoder()
    }
}

/// Encodes what is encoded.
#[derive(Debug)]
pub(super) struct Put;

impl Encoder for Put {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.len());
        prost::bytes::BufMut::put(to, item);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use futures_util::future::join_all;
    use mcpscope_core::ClockAnchor;
    use mcpscope_hub::{Sources, hub};

    use super::*;
    use crate::proto::WatchSnapshotsResponse;

    #[tokio::test]
    async fn each_frame_is_encoded_once_for_all() {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
        let sources =
            Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
        let settings = mcpscope_hub::Config { update_interval: Duration::from_millis(50), ..Default::default() };
        let (hub, reader, _admin) = hub(sources, settings);
        let snapshots = Snapshots::new(reader.clone(), reader.turn());
        let first = snapshots.newest().await;
        assert_eq!(first.sequence, 0);
        let of = |message: &Bytes| GetSnapshotResponse::decode(message.clone()).unwrap().dashboard.unwrap();
        assert_eq!(of(&first.message).cpu_usage, None, "it is not known yet");
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(hub.run());
        let mut frames = reader.subscribe();
        while frames.next().await.unwrap().sequence == 0 {}
        drop(tasks);
        let all = join_all((0..100).map(|_| snapshots.newest())).await;
        let newest = reader.frame();
        for snapshot in all {
            assert_eq!(snapshot.sequence, newest.sequence);
            let again = snapshots.newest().await;
            assert_eq!(snapshot.message.as_ptr(), again.message.as_ptr(), "the same bytes in the same place");
            assert_eq!(of(&snapshot.message), Dashboard::from(&*newest));
            let watched = WatchSnapshotsResponse::decode(snapshot.message).unwrap().dashboard;
            assert_eq!(watched, Some(Dashboard::from(&*newest)));
        }
    }
}
