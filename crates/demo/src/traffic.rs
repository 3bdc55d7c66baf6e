//! The traffic: a client that never stops calling.

use std::{ops::RangeInclusive, time::Duration};

use reqwest::Url;
use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient, ServiceError,
    model::{
        CallToolRequestParams, ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, ElicitationAction,
        GetPromptRequestParams, Implementation, JsonObject, ProtocolVersion, ReadResourceRequestParams,
    },
    service::{ClientInitializeError, RequestContext, RunningService},
    transport::{
        IntoTransport, StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::DemoError;

/// Together with the calls' own durations, 5 to 10 calls per second.
const PAUSE_MS: RangeInclusive<u64> = 50..=130;
const CALLS_PER_SESSION: RangeInclusive<u32> = 25..=35;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A lost message must not stop the traffic for good.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the call that is under way at the end may still take: longer than the slowest tool, as a rule.
const LAST_ANSWER: Duration = Duration::from_millis(500);
/// A server that does not answer the end of a session must not keep the traffic from ending.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(400);

/// What is called, and how often relative to the others.
const MIX: [(u32, Step); 10] = [
    (24, Step::Tool("echo")),
    (20, Step::Tool("add")),
    (14, Step::Tool("slow")),
    (14, Step::Tool("flaky")),
    (6, Step::Tool("large")),
    (8, Step::Tool("progress")),
    (6, Step::Tool("ask_client")),
    (2, Step::ListTools),
    (4, Step::Resources),
    (2, Step::Prompts),
];

#[derive(Debug, Clone, Copy)]
enum Step {
    Tool(&'static str),
    ListTools,
    Resources,
    Prompts,
}

/// How a session with the server came to its end.
enum Ended {
    /// It was asked to.
    Stopped,
    /// Enough calls for one session.
    Done,
    Lost(ServiceError),
}

type Client = RunningService<RoleClient, DemoClient>;

/// Calls the MCP server at `url` over Streamable HTTP until `stop`: every tool of a
/// [`DemoServer`](crate::DemoServer) in a random mix that follows from `seed`, 5 to 10 calls per
/// second, and now and then its resources and its prompt.
///
/// After about 30 calls the session is ended and another one begun; sessions use the protocol
/// revisions 2025-11-25 (`initialize`) and 2026-07-28 (`server/discover`) in turn. What the tools
/// answer, errors included, is of no consequence. A lost connection is made anew after 1 s. After
/// `stop` the call that is under way may end, and then the session does, in less than 1 s altogether.
///
/// # Errors
///
/// [`DemoError::Url`] or [`DemoError::Scheme`] if `url` is not an `http` URL,
/// [`DemoError::HttpClient`] if the HTTP client cannot be built. Nothing after that is an error.
pub async fn traffic_http(url: String, seed: u64, stop: CancellationToken) -> Result<(), DemoError> {
    call_over_http(&url, seed, CALLS_PER_SESSION, &stop).await
}

async fn call_over_http(
    url: &str,
    seed: u64,
    calls_per_session: RangeInclusive<u32>,
    stop: &CancellationToken,
) -> Result<(), DemoError> {
    let url = Url::parse(url).map_err(DemoError::Url)?;
    if url.scheme() != "http" {
        return Err(DemoError::Scheme(url.scheme().to_owned()));
    }
    // The server is a local one: a proxy that the environment names must not come in between.
    let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().map_err(DemoError::HttpClient)?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let lifecycles = [
        ClientLifecycleMode::Initialize,
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] },
    ]
    .into_iter()
    .cycle();

    for lifecycle in lifecycles {
        let config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
        let transport = StreamableHttpClientTransport::with_client(http.clone(), config);
        let calls = rng.u32(calls_per_session.clone());
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            client = connect(transport, lifecycle) => match client {
                Ok(client) => drive(client, &mut rng, Some(calls), stop).await,
                Err(_) => Ended::Lost(ServiceError::TransportClosed),
            },
        };
        match ended {
            Ended::Stopped => break,
            Ended::Done => {}
            Ended::Lost(_) => {
                // Not the error itself: it may quote what the server sent.
                tracing::debug!("the demo client has no connection, it tries again in 1 s");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(RETRY_PAUSE) => {}
                }
            }
        }
    }
    Ok(())
}

/// Calls the MCP server behind `read` and `write`, one message per line, until `stop`: the same mix
/// as [`traffic_http`], in one session of the protocol revision 2025-11-25.
///
/// After `stop` the call that is under way may end, and then both streams are dropped, in less than 1 s altogether.
///
/// # Errors
///
/// [`DemoError::Connect`] or [`DemoError::ConnectTimeout`] (10 s) if the handshake fails,
/// [`DemoError::Lost`] if the server goes away: streams cannot be opened anew.
pub async fn traffic_io<R, W>(read: R, write: W, seed: u64, stop: CancellationToken) -> Result<(), DemoError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let mut rng = fastrand::Rng::with_seed(seed);
    let client = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        client = connect((read, write), ClientLifecycleMode::Initialize) => client?,
    };
    match drive(client, &mut rng, None, &stop).await {
        Ended::Stopped | Ended::Done => Ok(()),
        Ended::Lost(error) => Err(DemoError::Lost(Box::new(error))),
    }
}

async fn connect<T, E, A>(transport: T, lifecycle: ClientLifecycleMode) -> Result<Client, DemoError>
where
    T: IntoTransport<RoleClient, E, A>,
    E: std::error::Error + Send + Sync + 'static,
{
    let connected = timeout(ANSWER_TIMEOUT, DemoClient.serve_with_lifecycle(transport, lifecycle));
    match connected.await {
        Ok(connected) => connected.map_err(|error: ClientInitializeError| DemoError::Connect(Box::new(error))),
        Err(_) => Err(DemoError::ConnectTimeout(ANSWER_TIMEOUT)),
    }
}

/// Calls for one session and ends it, whatever the reason, in an orderly way.
async fn drive(mut client: Client, rng: &mut fastrand::Rng, calls: Option<u32>, stop: &CancellationToken) -> Ended {
    let ended = converse(&client, rng, calls, stop).await;
    if client.close_with_timeout(CLOSE_TIMEOUT).await.is_err() {
        tracing::debug!("the demo client's session ended abnormally");
    }
    ended
}

async fn converse(client: &Client, rng: &mut fastrand::Rng, calls: Option<u32>, stop: &CancellationToken) -> Ended {
    let mut made = 0;
    let mut step = Step::ListTools;
    while calls.is_none_or(|calls| made < calls) {
        // What is under way is not broken off: it would look like a server that owes an answer.
        let taken = tokio::select! {
            biased;
            taken = take(step, client, rng) => taken,
            () = stopped_for(LAST_ANSWER, stop) => return Ended::Stopped,
        };
        if let Err(error) = taken {
            return Ended::Lost(error);
        }
        made = made.saturating_add(1);
        step = pick(rng);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ended::Stopped,
            () = sleep(Duration::from_millis(rng.u64(PAUSE_MS))) => {}
        }
    }
    Ended::Done
}

async fn stopped_for(time: Duration, stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(time).await;
}

fn pick(rng: &mut fastrand::Rng) -> Step {
    let total: u32 = MIX.iter().map(|(weight, _)| weight).sum();
    let mut left = rng.u32(..total);
    for (weight, step) in MIX {
        if left < weight {
            return step;
        }
        left -= weight;
    }
    Step::ListTools
}

/// Takes one step.
///
/// # Errors
///
/// Only that the connection is lost.
async fn take(step: Step, client: &Client, rng: &mut fastrand::Rng) -> Result<(), ServiceError> {
    match step {
        Step::Tool(name) => {
            let call = CallToolRequestParams::new(name).with_arguments(arguments(name, rng));
            answered(client.call_tool(call)).await?;
        }
        Step::ListTools => {
            answered(client.list_all_tools()).await?;
        }
        Step::Resources => {
            let listed = answered(client.list_all_resources()).await?;
            if let Some(resource) = listed.and_then(|listed| rng.choice(listed)) {
                let read = ReadResourceRequestParams::new(resource.uri);
                answered(client.read_resource(read)).await?;
            }
        }
        Step::Prompts => {
            let listed = answered(client.list_all_prompts()).await?;
            if let Some(prompt) = listed.and_then(|listed| rng.choice(listed)) {
                answered(client.get_prompt(GetPromptRequestParams::new(prompt.name))).await?;
            }
        }
    }
    Ok(())
}

/// The answer, if it came and is not an error.
///
/// # Errors
///
/// Only that the connection is lost.
async fn answered<T>(request: impl Future<Output = Result<T, ServiceError>>) -> Result<Option<T>, ServiceError> {
    match timeout(ANSWER_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error @ (ServiceError::TransportClosed | ServiceError::TransportSend(_)))) => Err(error),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

fn arguments(tool: &str, rng: &mut fastrand::Rng) -> JsonObject {
    let arguments = match tool {
        "echo" => json!({ "message": format!("hello number {}", rng.u16(..)) }),
        "add" => json!({ "a": rng.i32(-1000..1000), "b": rng.i32(-1000..1000) }),
        "large" => json!({ "bytes": rng.usize(64 * 1024..=512 * 1024) }),
        "progress" => json!({ "steps": rng.u32(2..=6) }),
        "ask_client" => json!({ "question": "What is your favourite number?" }),
        _ => json!({}),
    };
    match arguments {
        Value::Object(arguments) => arguments,
        _ => JsonObject::new(),
    }
}

/// The client's side of what servers ask and tell: it fills in forms, and takes progress and
/// every other notification without a word.
#[derive(Debug, Clone, Copy)]
struct DemoClient;

impl ClientHandler for DemoClient {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(
            ClientCapabilities::builder().enable_elicitation().build(),
            Implementation::new("mcpscope-demo-client", env!("CARGO_PKG_VERSION")),
        )
        .with_protocol_version(ProtocolVersion::V_2025_11_25)
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(match request {
            ElicitRequestParams::FormElicitationParams { requested_schema, .. } => {
                let filled: JsonObject =
                    requested_schema.properties.into_keys().map(|name| (name, json!("forty-two"))).collect();
                ElicitResult::new(ElicitationAction::Accept).with_content(Value::Object(filled))
            }
            _ => ElicitResult::new(ElicitationAction::Decline),
        })
    }
}

#[cfg(test)]
mod tests;
