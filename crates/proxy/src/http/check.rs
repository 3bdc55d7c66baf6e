//! Whether the upstream works, asked by the relay itself: at the start, and as long as it does not, when nobody may send
//! requests any more that would show it.

use std::io::IoSlice;
use std::sync::Arc;

use tokio::time::timeout;

use super::answers::{Answers, Failure};
use super::stream::Stream;
use super::wire::{Input, write};
use super::{Shared, Upstream, head};

/// Tells health whether the upstream can be reached; and if it could be all the time and gave no answers, whether it gives one.
pub(super) async fn check_upstream(shared: Arc<Shared>) {
    let config = &shared.config;
    let Some(traffic) = &config.traffic else { return };
    let (upstream, limit) = (&config.upstream, config.connect_timeout);
    let why = match upstream.connect(config.tls.connect.as_ref(), limit, || ()).await {
        Ok(_) if !traffic.wants_answer() => return traffic.works(),
        Ok(stream) => match timeout(limit, answers(upstream, stream)).await {
            Ok(Ok(())) => return traffic.works(),
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => format!("no answer within {} s", limit.as_secs_f64()),
        },
        Err(error) => error.to_string(),
    };
    traffic.fails(&format!("upstream {}: {why}", upstream.origin()));
}

/// Sends a request that changes nothing, and that is none of MCP (RFC 9110, section 9.3.7). Any answer will do.
async fn answers(upstream: &Upstream, mut stream: Stream) -> Result<(), Failure> {
    let (path, host) = (upstream.path(), upstream.authority());
    let request = format!("OPTIONS {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    write(&mut stream, &mut [IoSlice::new(request.as_bytes())]).await.map_err(Failure::Broken)?;
    let mut input = Input::default();
    let end = Answers::head(&mut stream, &mut input, |_| None).await?.end;
    let raw = input.bytes().get(..end).unwrap_or_default();
    head::read_answer(raw, false, |_| ()).map_err(Failure::BadAnswer)
}
