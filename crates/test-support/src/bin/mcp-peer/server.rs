//! The server: what the conformance suite calls by name, and tools for what a relay may get wrong.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, CompleteRequestParams, CompleteResult,
    CompletionInfo, ContentBlock, CreateTaskResult, GetPromptRequestParams, GetPromptResponse, GetPromptResult,
    GetTaskParams, GetTaskResult, Implementation, JsonObject, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, LoggingLevel, LoggingMessageNotificationParam, PaginatedRequestParams,
    ProgressNotificationParam, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, ResourceContents,
    ResourceTemplate, ResourceUpdatedNotificationParam, ServerConfig, SetLevelRequestParams, SubscribeRequestParams,
    SubscriptionFilter, Tool, UnsubscribeRequestParams, UpdateTaskParams,
};
use rmcp::service::{RequestContext, SubscriptionContext};
use rmcp::task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use crate::fixture::{Fixture, TaskEntry, requests};
use crate::rounds::{Asked, Rounds, is_modern};

/// Between two steps of a tool that takes some.
const STEP: Duration = Duration::from_millis(50);
/// What a subscription may fall behind by.
const CHANGES: usize = 256;

/// The server, once per session; what is shared between those is in [`Shared`].
pub(crate) struct PeerServer {
    shared: Arc<Shared>,
    /// What the session has subscribed to, up to 2025-11-25.
    subscribed: Mutex<HashSet<String>>,
    /// The changes since a subscription was accepted, until it is begun: it is acknowledged in between.
    accepted: Mutex<VecDeque<broadcast::Receiver<Change>>>,
}

pub(crate) struct Shared {
    fixture: Fixture,
    tasks: TaskManager,
    changes: broadcast::Sender<Change>,
    /// The keys of the calls of `wait` that were cancelled.
    cancelled: watch::Sender<HashSet<String>>,
}

#[derive(Clone)]
enum Change {
    Tools,
    Prompts,
    Resource(String),
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            fixture: Fixture::read(),
            tasks: TaskManager::new(),
            changes: broadcast::Sender::new(CHANGES),
            cancelled: watch::Sender::default(),
        })
    }
}

impl PeerServer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, subscribed: Mutex::default(), accepted: Mutex::default() }
    }

    async fn call(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = request.name.as_ref();
        let unknown = || ErrorData::invalid_params(format!("no such tool: {name}"), None);
        let entry = self.shared.fixture.tool(name).ok_or_else(unknown)?;
        let arguments = request.arguments.unwrap_or_default();
        let knows_tasks = context.client_capabilities().is_some_and(|capabilities| capabilities.supports_tasks());
        if entry.task.as_ref().is_some_and(|task| task.required) && !knows_tasks {
            let missing = json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
            return Err(ErrorData::missing_required_client_capability(serde_json::from_value(missing).unwrap()));
        }
        let rounds = Rounds {
            name,
            rounds: &entry.asks,
            sealed: entry.sealed,
            arguments: &arguments,
            responses: request.input_responses,
            state: request.request_state,
        };
        let responses = match rounds.ask(context).await? {
            Asked::More(more) => return Ok(more.into()),
            Asked::All(responses) => responses,
        };
        if let Some(task) = entry.task.as_ref().filter(|_| knows_tasks) {
            let answer = entry.answer(&arguments);
            return Ok(self.start_task(name, task, arguments, answer, json!(responses)));
        }
        if let Some(answer) = entry.answer(&arguments) {
            return Ok(answer.into());
        }
        if !entry.asks.is_empty() {
            return Ok(text(format!("state-ok: {}", json!(responses))).into());
        }
        self.act(name, &arguments, context).await.map(Into::into)
    }

    /// The tools that do something.
    async fn act(
        &self,
        name: &str,
        arguments: &JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResult, ErrorData> {
        let key = || arguments.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
        match name {
            "test_tool_with_logging" | "test_logging_tool" => log(context).await,
            "test_tool_with_progress" => {
                for progress in [0.0, 50.0, 100.0] {
                    tell_progress(context, progress).await;
                    tokio::time::sleep(STEP).await;
                }
            }
            "test_trigger_tool_change" => self.change(Change::Tools, context).await,
            "test_trigger_prompt_change" => self.change(Change::Prompts, context).await,
            "touch" => {
                let uri = arguments.get("uri").and_then(Value::as_str).unwrap_or_default();
                self.change(Change::Resource(uri.to_owned()), context).await;
            }
            "slow_compute" => tokio::time::sleep(seconds(arguments)).await,
            "wait" => {
                tell_progress(context, 0.0).await;
                context.ct.cancelled().await;
                self.shared.cancelled.send_modify(|keys| {
                    keys.insert(key());
                });
            }
            "cancelled" => {
                let mut cancelled = self.shared.cancelled.subscribe();
                let _ = cancelled.wait_for(|keys| keys.contains(&key())).await;
            }
            "large" => {
                let bytes = arguments.get("bytes").and_then(Value::as_u64).unwrap_or_default();
                return Ok(text("0123456789abcdef".chars().cycle().take(usize::try_from(bytes).unwrap()).collect()));
            }
            _ => return Err(ErrorData::internal_error(format!("{name} is not written"), None)),
        }
        Ok(text(format!("{name}: done")))
    }

    /// Tells a change to those who listen, and to the session itself in the older revisions.
    async fn change(&self, change: Change, context: &RequestContext<RoleServer>) {
        if !is_modern(context) {
            let _ = match &change {
                Change::Tools => context.peer.notify_tool_list_changed().await,
                Change::Prompts => context.peer.notify_prompt_list_changed().await,
                Change::Resource(uri) if self.subscribed.lock().unwrap().contains(uri) => {
                    context.peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await
                }
                Change::Resource(_) => Ok(()),
            };
        }
        let _ = self.shared.changes.send(change);
    }

    fn start_task(
        &self,
        name: &str,
        entry: &TaskEntry,
        arguments: JsonObject,
        answer: Option<CallToolResult>,
        responses: Value,
    ) -> CallToolResponse {
        let (name, asks) = (name.to_owned(), entry.asks.clone());
        let options = TaskOptions::new().with_poll_interval_ms(50);
        let task = self.shared.tasks.spawn(options, move |context| {
            Box::pin(async move {
                tokio::select! {
                    () = context.cancelled() => Err(TaskExit::Cancelled),
                    done = work(&name, &context, asks, &arguments, answer, responses) => done,
                }
            })
        });
        CreateTaskResult::new(task).into()
    }
}

async fn work(
    name: &str,
    context: &TaskContext,
    asks: Value,
    arguments: &JsonObject,
    answer: Option<CallToolResult>,
    mut said: Value,
) -> Result<CallToolResult, TaskExit> {
    tokio::time::sleep(seconds(arguments)).await;
    if name == "protocol_error_job" {
        return Err(ErrorData::internal_error("the job failed", None).into());
    }
    let asked = requests(&asks, arguments).into_iter();
    let answers = asked.map(async |(key, request)| (context.request_input(key.clone(), request).await, key));
    for (answer, key) in futures_util::future::join_all(answers).await {
        said[key] = answer?;
    }
    Ok(answer.unwrap_or_else(|| text(format!("{name}: {said}"))))
}

fn seconds(arguments: &JsonObject) -> Duration {
    arguments.get("seconds").and_then(Value::as_f64).map_or(Duration::ZERO, Duration::from_secs_f64)
}

fn text(text: String) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

async fn tell_progress(context: &RequestContext<RoleServer>, progress: f64) {
    if let Some(token) = context.meta.get_progress_token() {
        let _ = context.peer.notify_progress(ProgressNotificationParam::new(token, progress).with_total(100.0)).await;
    }
}

/// From 2026-07-28 on only to those who ask for it with the call.
async fn log(context: &RequestContext<RoleServer>) {
    for message in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
        if !is_modern(context) || context.meta.log_level().is_some() {
            let params = LoggingMessageNotificationParam::new(LoggingLevel::Info, message.into());
            let _ = context.peer.notify_logging_message(params.with_logger("mcp-peer")).await;
        }
        tokio::time::sleep(STEP).await;
    }
}

impl ServerHandler for PeerServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(self.shared.fixture.capabilities.clone())
            .with_server_info(Implementation::new("mcp-peer", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.shared.fixture.all_tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.shared.fixture.described(name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.call(request, &context).await
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(self.shared.fixture.all_resources()))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template = ResourceTemplate::new("test://template/{id}/data", "template")
            .with_description("Data by its id")
            .with_mime_type("application/json");
        Ok(ListResourceTemplatesResult::with_all_items(vec![template]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = request.uri;
        let id = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
        let contents = match id {
            Some(id) => {
                let data = json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") });
                ResourceContents::text(data.to_string(), &uri).with_mime_type("application/json")
            }
            None => self
                .shared
                .fixture
                .contents(&uri)
                .ok_or_else(|| ErrorData::resource_not_found("Resource not found", Some(json!({ "uri": uri }))))?,
        };
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.subscribed.lock().unwrap().insert(request.uri);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.subscribed.lock().unwrap().remove(&request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        self.accepted.lock().unwrap().push_back(self.shared.changes.subscribe());
        Some(requested.supported_by(&self.shared.fixture.capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.accepted.lock().unwrap().pop_front().expect("it was accepted");
        let (sink, accepted) = (context.sink(), context.accepted());
        loop {
            let change = tokio::select! {
                () = context.cancelled() => return Ok(()),
                change = changes.recv() => change,
            };
            let _ = match change {
                Ok(Change::Tools) if accepted.tools_list_changed == Some(true) => sink.notify_tool_list_changed().await,
                Ok(Change::Prompts) if accepted.prompts_list_changed == Some(true) => {
                    sink.notify_prompt_list_changed().await
                }
                Ok(Change::Resource(uri)) if accepted.resource_subscriptions.iter().flatten().any(|of| *of == uri) => {
                    sink.notify_resource_updated(uri).await
                }
                Ok(_) => Ok(()),
                Err(error) => return Err(ErrorData::internal_error(error.to_string(), None)),
            };
        }
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(self.shared.fixture.all_prompts()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let name = request.name.as_str();
        let unknown = || ErrorData::invalid_params(format!("no such prompt: {name}"), None);
        let entry = self.shared.fixture.prompt(name).ok_or_else(unknown)?;
        let arguments = request.arguments.unwrap_or_default();
        let rounds = Rounds {
            name,
            rounds: &entry.asks,
            sealed: false,
            arguments: &arguments,
            responses: request.input_responses,
            state: request.request_state,
        };
        Ok(match rounds.ask(&context).await? {
            Asked::More(more) => more.into(),
            Asked::All(_) => GetPromptResult::new(entry.messages(&arguments)).into(),
        })
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let known = ["paris", "park", "party"].map(str::to_owned);
        let values = known.into_iter().filter(|value| value.starts_with(&request.argument.value)).collect();
        let values = CompletionInfo::new(values).map_err(|error| ErrorData::internal_error(error, None))?;
        Ok(CompleteResult::new(values))
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.shared.tasks.get_task(&request.task_id)?))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.shared.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.shared.tasks.cancel_task(&request.task_id)
    }
}
