//! Every tool, resource and prompt of the demo server, called by a real rmcp client over byte
//! streams and over HTTP, in both protocol eras.
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn the parts that they connect; the runtime of a test ends with it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]

use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mcpscope_demo::{DemoError, HTTP_PATH, http, serve_io};
use rmcp::{
    ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient, ServiceError,
    model::{
        CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult,
        ElicitationAction, ErrorCode, GetPromptRequestParams, Implementation, ProgressNotificationParam,
        ProtocolVersion, ReadResourceRequestParams, ResourceContents,
    },
    service::{NotificationContext, RequestContext, RunningService},
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

const SEED: u64 = 7;
const LONG: Duration = Duration::from_secs(10);

/// A client that counts progress, and answers questions with `answer` if it has one.
struct TestClient {
    answer: Option<ElicitResult>,
    progress: AtomicU32,
}

impl TestClient {
    fn new(answer: Option<ElicitResult>) -> Self {
        Self { answer, progress: AtomicU32::new(0) }
    }
}

impl ClientHandler for TestClient {
    fn get_info(&self) -> ClientConfig {
        let capabilities = match self.answer {
            Some(_) => ClientCapabilities::builder().enable_elicitation().build(),
            None => ClientCapabilities::default(),
        };
        ClientConfig::new(capabilities, Implementation::new("test", "0"))
            .with_protocol_version(ProtocolVersion::V_2025_11_25)
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(self.answer.clone().expect("asked without the capability"))
    }

    async fn on_progress(&self, _params: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        self.progress.fetch_add(1, Ordering::SeqCst);
    }
}

type Client = RunningService<RoleClient, TestClient>;

fn accept(said: &str) -> Option<ElicitResult> {
    Some(ElicitResult::new(ElicitationAction::Accept).with_content(json!({ "answer": said })))
}

fn lifecycles() -> [(ClientLifecycleMode, ProtocolVersion); 2] {
    let modern = ProtocolVersion::V_2026_07_28;
    [
        (ClientLifecycleMode::Initialize, ProtocolVersion::V_2025_11_25),
        (ClientLifecycleMode::Discover { preferred_versions: vec![modern.clone()] }, modern),
    ]
}

fn over_streams() -> (tokio::io::DuplexStream, JoinHandle<Result<(), DemoError>>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (read, write) = tokio::io::split(theirs);
    (ours, tokio::spawn(serve_io(read, write, SEED)))
}

async fn over_http() -> (String, CancellationToken, JoinHandle<Result<(), DemoError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{HTTP_PATH}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let server = tokio::spawn(http(listener, SEED, stop.clone()));
    (url, stop, server)
}

/// Runs `check` with a client for each transport and each era.
async fn everywhere<F, R>(answer: Option<ElicitResult>, check: F)
where
    F: Fn(Client) -> R,
    R: Future<Output = Client>,
{
    for (lifecycle, version) in lifecycles() {
        let (stream, server) = over_streams();
        let client = TestClient::new(answer.clone()).serve_with_lifecycle(stream, lifecycle.clone()).await.unwrap();
        assert_eq!(client.peer_info().unwrap().protocol_version, version);
        check(client).await.cancel().await.unwrap();
        timeout(LONG, server).await.unwrap().unwrap().unwrap();

        let (url, stop, server) = over_http().await;
        let client = TestClient::new(answer.clone())
            .serve_with_lifecycle(StreamableHttpClientTransport::from_uri(url), lifecycle)
            .await
            .unwrap();
        assert_eq!(client.peer_info().unwrap().protocol_version, version);
        check(client).await.cancel().await.unwrap();
        stop.cancel();
        timeout(LONG, server).await.unwrap().unwrap().unwrap();
    }
}

async fn call(client: &Client, tool: &'static str, arguments: Value) -> Result<CallToolResult, ServiceError> {
    let Value::Object(arguments) = arguments else {
        panic!("arguments must be an object");
    };
    let request = CallToolRequestParams::new(tool).with_arguments(arguments);
    timeout(LONG, client.call_tool(request)).await.unwrap()
}

fn text(result: &CallToolResult) -> &str {
    &result.content[0].as_text().unwrap().text
}

async fn answer(client: &Client, tool: &'static str, arguments: Value) -> String {
    let result = call(client, tool, arguments).await.unwrap();
    assert_ne!(result.is_error, Some(true), "{}", text(&result));
    text(&result).to_owned()
}

async fn complaint(client: &Client, tool: &'static str, arguments: Value) -> String {
    let result = call(client, tool, arguments).await.unwrap();
    assert_eq!(result.is_error, Some(true), "{}", text(&result));
    text(&result).to_owned()
}

#[tokio::test]
async fn tools_answer() {
    everywhere(None, |client| async {
        let names: Vec<_> = client.list_all_tools().await.unwrap().into_iter().map(|tool| tool.name).collect();
        assert_eq!(names, ["echo", "add", "slow", "flaky", "large", "progress", "ask_client"]);
        assert_eq!(answer(&client, "echo", json!({"message": "hé"})).await, "hé");
        assert_eq!(answer(&client, "add", json!({"a": 2, "b": 3.5})).await, "5.5");
        assert_eq!(answer(&client, "slow", json!({"delay_ms": 1})).await, "answered after 1 ms");
        assert_eq!(answer(&client, "large", json!({})).await.len(), 256 * 1024);
        assert_eq!(answer(&client, "large", json!({"bytes": 46})).await.len(), 46);
        let most = answer(&client, "large", json!({"bytes": 4 * 1024 * 1024})).await;
        assert_eq!(most.len(), 4 * 1024 * 1024);
        client
    })
    .await;
}

#[tokio::test]
async fn slow_varies_within_its_range() {
    everywhere(None, |client| async {
        let said = answer(&client, "slow", json!({})).await;
        let delay_ms: u64 =
            said.strip_prefix("answered after ").and_then(|rest| rest.strip_suffix(" ms")).unwrap().parse().unwrap();
        assert!((20..=400).contains(&delay_ms), "{delay_ms}");
        client
    })
    .await;
}

#[tokio::test]
async fn flaky_fails_in_both_ways() {
    everywhere(None, |client| async {
        for _ in 0..20 {
            answer(&client, "flaky", json!({"failure_rate": 0})).await;
        }
        let (mut told, mut protocol) = (0, 0);
        for _ in 0..40 {
            match call(&client, "flaky", json!({"failure_rate": 1})).await {
                Ok(result) => {
                    assert_eq!(result.is_error, Some(true));
                    told += 1;
                }
                Err(ServiceError::McpError(error)) => {
                    assert_eq!(error.code, ErrorCode::INTERNAL_ERROR);
                    protocol += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(told > 0 && protocol > 0, "{told} {protocol}");
        client
    })
    .await;
}

#[tokio::test]
async fn progress_is_reported() {
    everywhere(None, |client| async {
        // rmcp's client gives every request a progress token.
        assert_eq!(answer(&client, "progress", json!({"steps": 3})).await, "done in 3 steps");
        // Notifications are handled in tasks of their own, so they may be seen after the answer.
        timeout(LONG, async {
            while client.service().progress.load(Ordering::SeqCst) < 3 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        client
    })
    .await;
}

#[tokio::test]
async fn a_client_with_the_capability_is_asked() {
    everywhere(accept("Ferris"), |client| async {
        assert_eq!(answer(&client, "ask_client", json!({})).await, "the client said: Ferris");
        client
    })
    .await;
    everywhere(Some(ElicitResult::new(ElicitationAction::Decline)), |client| async {
        assert_eq!(answer(&client, "ask_client", json!({"question": "Why?"})).await, "the client declined to answer");
        client
    })
    .await;
    everywhere(Some(ElicitResult::new(ElicitationAction::Accept)), |client| async {
        complaint(&client, "ask_client", json!({})).await;
        client
    })
    .await;
}

#[tokio::test]
async fn a_client_without_the_capability_is_not_asked() {
    everywhere(None, |client| async {
        let told = complaint(&client, "ask_client", json!({})).await;
        assert!(told.contains("elicitation"), "{told}");
        client
    })
    .await;
}

#[tokio::test]
async fn wrong_arguments_are_told() {
    everywhere(None, |client| async {
        for (tool, arguments, expected) in [
            ("echo", json!({}), "missing field `message`"),
            ("echo", json!({"message": 1}), "expected a string"),
            ("echo", json!({"message": "", "x": 1}), "unknown field `x`"),
            ("add", json!({"a": 1, "b": "2"}), "expected f64"),
            ("add", json!({"a": 1e308, "b": 1e308}), "too large"),
            ("slow", json!({"delay_ms": 10_001}), "from 0 to 10000, not 10001"),
            ("slow", json!({"delay_ms": -1}), "expected u64"),
            ("flaky", json!({"failure_rate": 1.5}), "from 0 to 1, not 1.5"),
            ("large", json!({"bytes": 0}), "from 1 to 4194304, not 0"),
            ("large", json!({"bytes": 4_194_305}), "not 4194305"),
            ("progress", json!({"steps": 21}), "from 1 to 20, not 21"),
            ("ask_client", json!({"question": []}), "expected a string"),
        ] {
            let told = complaint(&client, tool, arguments).await;
            assert!(told.contains(expected), "{tool}: {told}");
        }
        let Err(ServiceError::McpError(error)) = call(&client, "fly", json!({})).await else {
            panic!("an unknown tool must be a JSON-RPC error");
        };
        assert_eq!(error.code, ErrorCode::INVALID_PARAMS);
        assert_eq!(error.message, "unknown tool: fly");
        client
    })
    .await;
}

#[tokio::test]
async fn resources_and_prompt() {
    everywhere(None, |client| async {
        let resources = client.list_all_resources().await.unwrap();
        assert_eq!(resources.len(), 2);
        for resource in resources {
            let read = ReadResourceRequestParams::new(resource.uri.clone());
            let read = client.read_resource(read).await.unwrap();
            let ResourceContents::TextResourceContents { uri, text, .. } = &read.contents[0] else {
                panic!("not text");
            };
            assert_eq!(*uri, resource.uri);
            assert!(!text.is_empty());
        }
        let unknown = ReadResourceRequestParams::new("demo://nothing");
        assert!(matches!(client.read_resource(unknown).await, Err(ServiceError::McpError(_))));

        let prompts = client.list_all_prompts().await.unwrap();
        assert_eq!(prompts.len(), 1);
        let Value::Object(arguments) = json!({"name": "Ferris"}) else { unreachable!() };
        let get = GetPromptRequestParams::new("greeting").with_arguments(arguments);
        let got = client.get_prompt(get).await.unwrap();
        assert!(format!("{:?}", got.messages).contains("greet Ferris"));
        assert!(matches!(
            client.get_prompt(GetPromptRequestParams::new("nothing")).await,
            Err(ServiceError::McpError(_))
        ));
        client
    })
    .await;
}

#[tokio::test]
async fn the_same_seed_behaves_the_same() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let (stream, _server) = over_streams();
        let client = TestClient::new(None).serve_with_lifecycle(stream, ClientLifecycleMode::Initialize).await.unwrap();
        let mut run = Vec::new();
        for _ in 0..20 {
            let outcome = call(&client, "flaky", json!({"failure_rate": 0.5})).await;
            run.push(outcome.map(|result| result.is_error).ok());
        }
        client.cancel().await.unwrap();
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn streams_that_end_at_once_are_no_failure() {
    let (ours, server) = over_streams();
    drop(ours);
    timeout(LONG, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn stop_ends_the_http_server_with_a_session_and_a_call_open() {
    let (url, stop, server) = over_http().await;
    let client = TestClient::new(None)
        .serve_with_lifecycle(StreamableHttpClientTransport::from_uri(url), ClientLifecycleMode::Initialize)
        .await
        .unwrap();
    let slow = call(&client, "slow", json!({"delay_ms": 10_000}));
    tokio::pin!(slow);
    // Sent before the call that is answered here, the slow one is as good as certainly in work.
    tokio::select! {
        biased;
        _ = &mut slow => panic!("answered too early"),
        _ = answer(&client, "echo", json!({"message": ""})) => {}
    }
    stop.cancel();
    timeout(Duration::from_secs(1), server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let (url, stop, server) = over_http().await;
    let answer = reqwest::get(url.replace(HTTP_PATH, "/other")).await.unwrap();
    assert_eq!(answer.status(), 404);
    stop.cancel();
    timeout(LONG, server).await.unwrap().unwrap().unwrap();
}
