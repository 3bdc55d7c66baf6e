//! The tools: their arguments, their descriptions, and what they do.

use std::{ops::RangeInclusive, time::Duration};

use rmcp::{
    ErrorData, RoleServer, ServiceError,
    handler::server::common::schema_for_type,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams,
        ElicitResult, ElicitationAction, ElicitationSchema, InputRequest, InputRequests, InputRequiredResult,
        JsonObject, ProgressNotificationParam, ProtocolVersion, Tool,
    },
    schemars::{self, JsonSchema},
    service::RequestContext,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::server::Dice;

const DELAY_MS: RangeInclusive<u64> = 0..=10_000;
const RANDOM_DELAY_MS: RangeInclusive<u64> = 20..=400;
const LARGE_BYTES: RangeInclusive<usize> = 1..=4 * 1024 * 1024;
const LARGE_DEFAULT: usize = 256 * 1024;
const STEPS: RangeInclusive<u32> = 1..=20;
const STEPS_DEFAULT: u32 = 5;
const STEP_PAUSE: Duration = Duration::from_millis(10);
const FAILURE_RATE: RangeInclusive<f64> = 0.0..=1.0;
const FAILURE_RATE_DEFAULT: f64 = 0.3;
/// A client that never answers must not hold the tool, and with it the connection's end, forever.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
/// The key of the one question in an `input_required` result, and of the answer in its form.
const ANSWER: &str = "answer";
const LARGE_TEXT: &str = "The quick brown fox jumps over the lazy dog. ";

/// How a call goes wrong.
pub(crate) enum Failure {
    /// A result with `isError`: the caller is told in words.
    Told(String),
    /// A JSON-RPC error.
    Protocol(ErrorData),
}

impl From<ErrorData> for Failure {
    fn from(error: ErrorData) -> Self {
        Self::Protocol(error)
    }
}

type Answer = Result<CallToolResponse, Failure>;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EchoArguments {
    /// Text to answer with.
    message: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddArguments {
    /// First summand.
    a: f64,
    /// Second summand.
    b: f64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SlowArguments {
    /// Delay in milliseconds; random from 20 to 400 when absent.
    #[schemars(range(min = 0, max = 10_000))]
    delay_ms: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FlakyArguments {
    /// Probability of a failure; 0.3 when absent.
    #[schemars(range(min = 0, max = 1))]
    failure_rate: Option<f64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LargeArguments {
    /// Length of the answered text in bytes; 262144 when absent.
    #[schemars(range(min = 1, max = 4_194_304))]
    bytes: Option<usize>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ProgressArguments {
    /// Number of progress notifications; 5 when absent.
    #[schemars(range(min = 1, max = 20))]
    steps: Option<u32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AskArguments {
    /// What the client is asked.
    question: Option<String>,
}

/// Every tool, in the order in which they are listed.
pub(crate) fn all() -> Vec<Tool> {
    vec![
        Tool::new("echo", "Answers the message it was given", schema_for_type::<EchoArguments>()),
        Tool::new("add", "Adds two numbers", schema_for_type::<AddArguments>()),
        Tool::new("slow", "Answers after a delay", schema_for_type::<SlowArguments>()),
        Tool::new(
            "flaky",
            "Fails at times, half of them with a tool error, half with a JSON-RPC error",
            schema_for_type::<FlakyArguments>(),
        ),
        Tool::new("large", "Answers a large text", schema_for_type::<LargeArguments>()),
        Tool::new(
            "progress",
            "Reports progress if the request has a progress token, then answers",
            schema_for_type::<ProgressArguments>(),
        ),
        Tool::new(
            "ask_client",
            "Asks the client a question and answers what it said",
            schema_for_type::<AskArguments>(),
        ),
    ]
}

/// Calls the tool that `request` names.
pub(crate) async fn call(request: CallToolRequestParams, context: &RequestContext<RoleServer>, dice: &Dice) -> Answer {
    let arguments = request.arguments.unwrap_or_default();
    match request.name.as_ref() {
        "echo" => echo(parse(arguments)?),
        "add" => add(&parse(arguments)?),
        "slow" => slow(&parse(arguments)?, dice).await,
        "flaky" => flaky(&parse(arguments)?, dice),
        "large" => large(&parse(arguments)?),
        "progress" => progress(&parse(arguments)?, context).await,
        "ask_client" => {
            let answer = request.input_responses.and_then(|mut given| given.remove(ANSWER));
            ask_client(parse(arguments)?, answer, context).await
        }
        unknown => Err(ErrorData::invalid_params(format!("unknown tool: {unknown}"), None).into()),
    }
}

fn echo(arguments: EchoArguments) -> Answer {
    text(arguments.message)
}

fn add(arguments: &AddArguments) -> Answer {
    let sum = arguments.a + arguments.b;
    if sum.is_finite() {
        text(sum.to_string())
    } else {
        Err(Failure::Told("the sum is too large for a double".to_owned()))
    }
}

async fn slow(arguments: &SlowArguments, dice: &Dice) -> Answer {
    let delay_ms = match arguments.delay_ms {
        Some(given) => within("delay_ms", given, &DELAY_MS)?,
        None => dice.roll(|rng| rng.u64(RANDOM_DELAY_MS)),
    };
    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    text(format!("answered after {delay_ms} ms"))
}

fn flaky(arguments: &FlakyArguments, dice: &Dice) -> Answer {
    let rate = arguments.failure_rate.unwrap_or(FAILURE_RATE_DEFAULT);
    let rate = within("failure_rate", rate, &FAILURE_RATE)?;
    let (fails, in_words) = dice.roll(|rng| (rng.f64() < rate, rng.bool()));
    match (fails, in_words) {
        (false, _) => text("it worked this time".to_owned()),
        (true, true) => Err(Failure::Told("it did not work this time".to_owned())),
        (true, false) => Err(ErrorData::internal_error("the tool broke down this time", None).into()),
    }
}

fn large(arguments: &LargeArguments) -> Answer {
    let bytes = within("bytes", arguments.bytes.unwrap_or(LARGE_DEFAULT), &LARGE_BYTES)?;
    let mut answer = LARGE_TEXT.repeat(bytes.div_ceil(LARGE_TEXT.len()));
    answer.truncate(bytes);
    text(answer)
}

async fn progress(arguments: &ProgressArguments, context: &RequestContext<RoleServer>) -> Answer {
    let steps = within("steps", arguments.steps.unwrap_or(STEPS_DEFAULT), &STEPS)?;
    let token = context.meta.get_progress_token();
    for step in 1..=steps {
        tokio::time::sleep(STEP_PAUSE).await;
        if let Some(token) = &token {
            let report = ProgressNotificationParam::new(token.clone(), f64::from(step))
                .with_total(f64::from(steps))
                .with_message(format!("step {step} of {steps}"));
            context
                .peer
                .notify_progress(report)
                .await
                .map_err(|_| ErrorData::internal_error("the progress could not be reported", None))?;
        }
    }
    text(format!("done in {steps} steps"))
}

/// Asks through a request of its own up to 2025-11-25, and by an `input_required` result, which
/// makes the client call again with the answer, from 2026-07-28 on.
async fn ask_client(arguments: AskArguments, answer: Option<Value>, context: &RequestContext<RoleServer>) -> Answer {
    if let Some(answer) = answer {
        return match serde_json::from_value(answer) {
            Ok(answer) => report(&answer),
            Err(error) => Err(Failure::Told(format!("the answer is not valid: {error}"))),
        };
    }
    if !takes_questions(context) {
        return Err(Failure::Told(
            "the client cannot be asked: it did not declare the capability `elicitation`".to_owned(),
        ));
    }
    let question = ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: arguments.question.unwrap_or_else(|| "What is your name?".to_owned()),
        requested_schema: ElicitationSchema::builder().required_string(ANSWER).build_unchecked(),
    };
    let stateless = context.protocol_version().is_some_and(|version| version >= ProtocolVersion::NO_INITIALIZE);
    if stateless {
        let question = InputRequest::Elicitation(ElicitRequest::new(question));
        let questions = InputRequests::from([(ANSWER.to_owned(), question)]);
        return Ok(InputRequiredResult::from_input_requests(questions).into());
    }
    match context.peer.create_elicitation_with_timeout(question, Some(ASK_TIMEOUT)).await {
        Ok(answer) => report(&answer),
        Err(ServiceError::Timeout { .. }) => {
            Err(Failure::Told(format!("the client did not answer within {} s", ASK_TIMEOUT.as_secs())))
        }
        Err(_) => Err(Failure::Told("the client could not be asked".to_owned())),
    }
}

/// Whether the client declared that it fills in forms, which a bare `elicitation: {}` means too.
fn takes_questions(context: &RequestContext<RoleServer>) -> bool {
    context
        .client_capabilities()
        .and_then(|capabilities| capabilities.elicitation)
        .is_some_and(|declared| declared.form.is_some() || declared.url.is_none())
}

fn report(answer: &ElicitResult) -> Answer {
    let said = answer.content.as_ref().and_then(|content| content.get(ANSWER)).and_then(Value::as_str);
    match (&answer.action, said) {
        (ElicitationAction::Accept, Some(said)) => text(format!("the client said: {said}")),
        (ElicitationAction::Accept, None) => {
            Err(Failure::Told(format!("the client's answer has no text member `{ANSWER}`")))
        }
        (ElicitationAction::Decline, _) => text("the client declined to answer".to_owned()),
        _ => text("the client cancelled the question".to_owned()),
    }
}

fn text(answer: String) -> Answer {
    Ok(CallToolResult::success(vec![ContentBlock::text(answer)]).into())
}

/// Wrong arguments are told in words, so that a model can correct itself (SEP-1303).
fn parse<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| Failure::Told(format!("invalid arguments: {error}")))
}

fn within<T: PartialOrd + std::fmt::Display>(name: &str, given: T, range: &RangeInclusive<T>) -> Result<T, Failure> {
    if range.contains(&given) {
        Ok(given)
    } else {
        Err(Failure::Told(format!(
            "invalid arguments: `{name}` must be from {} to {}, not {given}",
            range.start(),
            range.end()
        )))
    }
}
