//! The MCP server: what it offers, and serving it over byte streams.

use std::sync::{Arc, Mutex, PoisonError};

use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, GetPromptRequestParams,
        GetPromptResponse, GetPromptResult, Implementation, ListPromptsResult, ListResourcesResult, ListToolsResult,
        PaginatedRequestParams, Prompt, PromptArgument, PromptMessage, ReadResourceRequestParams, ReadResourceResponse,
        ReadResourceResult, Resource, ResourceContents, Role, ServerCapabilities, ServerConfig, Tool,
    },
    service::{QuitReason, RequestContext, ServerInitializeError},
    transport,
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    DemoError,
    tools::{self, Failure},
};

const ABOUT_URI: &str = "demo://about";
const PALETTE_URI: &str = "demo://palette";
const GREETING: &str = "greeting";
const NAME: &str = "name";

/// A built-in MCP server whose tools behave differently.
///
/// It speaks every protocol revision that rmcp knows, with a handshake up to 2025-11-25 and
/// without from 2026-07-28 on. Clones share one source of randomness, since over HTTP each
/// session, and in the newest revision each request, is served by an instance of its own.
#[derive(Debug, Clone)]
pub struct DemoServer {
    dice: Dice,
}

impl DemoServer {
    /// A server whose random behaviour (delays, failures) follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)))) }
    }
}

/// The randomness that all clones of one server share.
#[derive(Debug, Clone)]
pub(crate) struct Dice(Arc<Mutex<fastrand::Rng>>);

impl Dice {
    pub(crate) fn roll<T>(&self, roll: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        // A generator has no state that a panic could leave half-changed.
        roll(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerHandler for DemoServer {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_resources().enable_prompts().build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")))
            .with_instructions("A server to watch: each tool behaves differently.")
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::all().into_iter().find(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let answer = tokio::select! {
            biased;
            () = context.ct.cancelled() => {
                return Err(ErrorData::internal_error("the call was cancelled", None));
            }
            answer = tools::call(request, &context, &self.dice) => answer,
        };
        match answer {
            Ok(response) => Ok(response),
            Err(Failure::Told(why)) => Ok(CallToolResult::error(vec![ContentBlock::text(why)]).into()),
            Err(Failure::Protocol(error)) => Err(error),
        }
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![
            Resource::new(ABOUT_URI, "about").with_description("What this server is").with_mime_type("text/plain"),
            Resource::new(PALETTE_URI, "palette").with_description("Three colours").with_mime_type("application/json"),
        ]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let (text, mime_type) = match request.uri.as_str() {
            ABOUT_URI => ("The built-in demo server of mcpscope.", "text/plain"),
            PALETTE_URI => (r#"["teal", "amber", "plum"]"#, "application/json"),
            unknown => {
                return Err(ErrorData::resource_not_found(format!("no such resource: {unknown}"), None));
            }
        };
        let contents = ResourceContents::text(text, request.uri).with_mime_type(mime_type);
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let name =
            PromptArgument::new(NAME).with_description("Who is greeted; the world when absent").with_required(false);
        Ok(ListPromptsResult::with_all_items(vec![Prompt::new(
            GREETING,
            Some("Asks for a greeting"),
            Some(vec![name]),
        )]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != GREETING {
            return Err(ErrorData::invalid_params(format!("no such prompt: {}", request.name), None));
        }
        let given = request.arguments.unwrap_or_default();
        let name = match given.get(NAME) {
            None => "the world",
            Some(name) => name
                .as_str()
                .ok_or_else(|| ErrorData::invalid_params("invalid arguments: `name` must be a string", None))?,
        };
        let message = PromptMessage::new_text(Role::User, format!("Please greet {name} warmly."));
        Ok(GetPromptResult::new(vec![message]).into())
    }
}

/// Serves a [`DemoServer`] over the process's standard input and output until end of input.
///
/// Answers to requests that are still in work at the end of input are sent, for up to 5 s.
/// Nothing else may write to the standard output meanwhile.
///
/// # Errors
///
/// [`DemoError::Handshake`] if the client does not begin as MCP asks, [`DemoError::Task`] if the
/// serving task fails.
///
/// # Panics
///
/// On Linux, if called outside of a tokio runtime whose I/O is enabled.
pub async fn serve_stdio(seed: u64) -> Result<(), DemoError> {
    // Not tokio's own handles: a read that waits in their blocking pool keeps the process from ending.
    let (read, write) = transport::io::stdio_pipes();
    serve_io(read, write, seed).await
}

/// Serves a [`DemoServer`] over `read` and `write`, one message per line, until `read` ends.
///
/// # Errors
///
/// As [`serve_stdio`].
pub async fn serve_io<R, W>(read: R, write: W, seed: u64) -> Result<(), DemoError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let serving = match DemoServer::new(seed).serve((read, write)).await {
        Ok(serving) => serving,
        // A client that leaves before it has said anything is no failure of the server.
        Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
        Err(error) => return Err(DemoError::Handshake(Box::new(error))),
    };
    match serving.waiting().await {
        Ok(QuitReason::JoinError(error)) | Err(error) => Err(DemoError::Task(error)),
        Ok(_) => Ok(()),
    }
}
