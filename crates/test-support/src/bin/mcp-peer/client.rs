//! The client: everything that a relay may get wrong, once, and a report of what came of it.

use std::sync::{Arc, Mutex};

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, ClientRequest,
    CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction,
    Implementation, ProgressNotificationParam, ProtocolVersion, ResourceUpdatedNotificationParam, SamplingMessage,
    SubscribeRequestParams, SubscriptionFilter,
};
use rmcp::service::{NotificationContext, PeerRequestOptions, RequestContext, RunningService, Subscription};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt as _, ErrorData, RoleClient};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;

const WATCHED: &str = "test://watched-resource";
/// The text that a large answer repeats.
const PATTERN: &[u8] = b"0123456789abcdef";

type Session = RunningService<RoleClient, Heard>;

/// What the server sent by itself.
#[derive(Clone)]
struct Heard {
    asked: Arc<Mutex<Vec<String>>>,
    progress: watch::Sender<Vec<f64>>,
    updated: watch::Sender<Vec<String>>,
}

impl ClientHandler for Heard {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder().enable_sampling().enable_elicitation().build();
        ClientConfig::new(capabilities, Implementation::new("mcp-peer", env!("CARGO_PKG_VERSION")))
    }

    async fn create_message(
        &self,
        params: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let prompt = json!(params.messages)[0]["content"].clone();
        let prompt = if prompt.is_array() { &prompt[0]["text"] } else { &prompt["text"] };
        self.asked.lock().unwrap().push(prompt.as_str().unwrap_or_default().to_owned());
        Ok(CreateMessageResult::new(SamplingMessage::assistant_text("from the model"), "none".to_owned()))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let message = json!(request)["message"].as_str().unwrap_or_default().to_owned();
        self.asked.lock().unwrap().push(message);
        let answer = json!({ "username": "from the user", "email": "user@example.com" });
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(answer))
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _context: NotificationContext<RoleClient>) {
        self.progress.send_modify(|progress| progress.push(params.progress));
    }

    async fn on_resource_updated(
        &self,
        params: ResourceUpdatedNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.updated.send_modify(|updated| updated.push(params.uri));
    }
}

/// Does everything once; `era` is `legacy` or `modern`, `target` is a URL or a command.
pub(crate) async fn run(era: &str, target: &[&str]) -> Value {
    let modern = era == "modern";
    let heard = Heard { asked: Arc::default(), progress: watch::Sender::default(), updated: watch::Sender::default() };
    let lifecycle = match era {
        "modern" => ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] },
        "legacy" => ClientLifecycleMode::Initialize,
        other => panic!("expected `legacy` or `modern`, not {other}"),
    };
    let (session, child) = connect(heard.clone(), target, lifecycle).await;
    let report = everything(&session, &heard, modern).await;
    session.cancel().await.expect("the session's task ends by itself");
    if let Some(mut child) = child {
        child.wait().await.expect("the server ends with its input");
    }
    report
}

async fn connect(heard: Heard, target: &[&str], lifecycle: ClientLifecycleMode) -> (Session, Option<Child>) {
    if let [url] = target {
        let transport = StreamableHttpClientTransport::from_uri(*url);
        return (heard.serve_with_lifecycle(transport, lifecycle).await.expect("a session"), None);
    }
    let (program, arguments) = target.split_first().expect("a URL or a command");
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().expect("the command starts");
    let pipes = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    (heard.serve_with_lifecycle(pipes, lifecycle).await.expect("a session"), Some(child))
}

async fn everything(session: &Session, heard: &Heard, modern: bool) -> Value {
    let mut report = json!({});
    report["text"] = text(&call(session, "test_simple_text", json!({})).await).into();
    let failed = call(session, "test_error_handling", json!({})).await;
    report["error"] = json!([failed.is_error, text(&failed)]);

    call(session, "test_tool_with_progress", json!({})).await;
    let mut progress = heard.progress.subscribe();
    report["progress"] = json!(*progress.wait_for(|seen| seen.len() >= 3).await.unwrap());

    let sampled = call(session, "test_sampling", json!({ "prompt": "for the model" })).await;
    report["sampled"] = text(&sampled).contains("from the model").into();
    let elicited = call(session, "test_elicitation", json!({ "message": "for the user" })).await;
    report["elicited"] = text(&elicited).contains("from the user").into();
    report["asked"] = json!(*heard.asked.lock().unwrap());

    let subscription = subscribe(session, modern).await;
    call(session, "touch", json!({ "uri": WATCHED })).await;
    report["updated"] = match subscription {
        Some(mut subscription) => {
            let told = subscription.next().await.expect("the subscription works").expect("and goes on");
            let uri = json!(told)["params"]["uri"].clone();
            subscription.cancel().await.expect("the subscription ends");
            uri
        }
        None => json!(heard.updated.subscribe().wait_for(|uris| !uris.is_empty()).await.unwrap()[0]),
    };

    let large = text(&call(session, "large", json!({ "bytes": 1_000_000 })).await);
    let intact = large.bytes().zip(PATTERN.iter().cycle()).all(|(byte, expected)| byte == *expected);
    report["large"] = json!([large.len(), intact]);

    cancel_a_call(session, &mut progress).await;
    report["cancelled"] = text(&call(session, "cancelled", json!({ "key": "rmcp" })).await).into();
    report["afterwards"] = text(&call(session, "test_simple_text", json!({})).await).into();
    report
}

/// Cancelled once the server has begun.
async fn cancel_a_call(session: &Session, progress: &mut watch::Receiver<Vec<f64>>) {
    let before = progress.borrow_and_update().len();
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(params("wait", json!({ "key": "rmcp" }))));
    let call = session.send_cancellable_request(request, PeerRequestOptions::no_options()).await.expect("a call");
    progress.wait_for(|seen| seen.len() > before).await.unwrap();
    call.cancel(None).await.expect("the call is cancelled");
}

async fn subscribe(session: &Session, modern: bool) -> Option<Subscription> {
    if modern {
        let filter = SubscriptionFilter::builder().resource_subscriptions([WATCHED]).build();
        Some(session.listen(filter).await.expect("a subscription"))
    } else {
        session.subscribe(SubscribeRequestParams::new(WATCHED)).await.expect("a subscription");
        None
    }
}

fn params(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    CallToolRequestParams::new(tool).with_arguments(arguments)
}

async fn call(session: &Session, tool: &'static str, arguments: Value) -> CallToolResult {
    session.call_tool(params(tool, arguments)).await.unwrap_or_else(|error| panic!("{tool}: {error}"))
}

fn text(result: &CallToolResult) -> String {
    result.content.first().and_then(|block| block.as_text()).expect("a text").text.clone()
}
