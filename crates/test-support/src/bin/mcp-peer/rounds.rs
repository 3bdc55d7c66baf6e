//! What a call must know of its client before it is answered: asked in rounds with `inputRequests` from 2026-07-28 on,
//! and by requests of the server's own before that.

use rmcp::model::{
    ClientCapabilities, ElicitRequestParams, InputRequest, InputRequests, InputRequiredResult, InputResponses,
    JsonObject, ProtocolVersion,
};
use rmcp::service::{RequestContext, ServiceError};
use rmcp::{ErrorData, RoleServer};
use serde_json::{Value, json};

use crate::fixture::requests;

/// What has been said so far, or what must be said next.
pub(crate) enum Asked {
    All(InputResponses),
    More(InputRequiredResult),
}

/// One call that asks.
pub(crate) struct Rounds<'a> {
    pub(crate) name: &'a str,
    pub(crate) rounds: &'a [Value],
    pub(crate) sealed: bool,
    pub(crate) arguments: &'a JsonObject,
    pub(crate) responses: Option<InputResponses>,
    pub(crate) state: Option<String>,
}

impl Rounds<'_> {
    pub(crate) async fn ask(self, context: &RequestContext<RoleServer>) -> Result<Asked, ErrorData> {
        if self.rounds.is_empty() {
            return Ok(Asked::All(InputResponses::new()));
        }
        if is_modern(context) { self.by_result(context) } else { self.by_requests(context).await }
    }

    fn by_result(self, context: &RequestContext<RoleServer>) -> Result<Asked, ErrorData> {
        let round = match &self.state {
            Some(state) => self.round_of(state)?,
            None => 0,
        };
        let asked = self.allowed(round, context)?;
        let responses = self.responses.clone().unwrap_or_default();
        let answered = asked.keys().all(|key| responses.get(key).is_some_and(Value::is_object));
        let next = match (answered && (self.state.is_some() || !self.sealed), round + 1) {
            (true, next) if next == self.rounds.len() => return Ok(Asked::All(responses)),
            (true, next) => next,
            (false, _) => round,
        };
        let asked = if next == round { asked } else { requests(&self.rounds[next], self.arguments) };
        let state = self.sealed.then(|| self.state_of(next));
        Ok(Asked::More(InputRequiredResult::new(Some(asked), state)))
    }

    /// Always the same for a round: runs of the suite are compared with each other.
    fn state_of(&self, round: usize) -> String {
        format!("{}-{round}", self.name)
    }

    fn round_of(&self, state: &str) -> Result<usize, ErrorData> {
        let round = (0..self.rounds.len()).find(|round| self.state_of(*round) == state);
        round.ok_or_else(|| ErrorData::invalid_params("this requestState is not one of this server", None))
    }

    /// What the client has not declared is not asked for.
    fn allowed(&self, round: usize, context: &RequestContext<RoleServer>) -> Result<InputRequests, ErrorData> {
        let declared = context.client_capabilities().unwrap_or_default();
        let mut asked = requests(&self.rounds[round], self.arguments);
        let mut missing = json!({});
        asked.retain(|_, request| {
            let (declared, capability) = match request {
                InputRequest::CreateMessage(_) => (declared.sampling.is_some(), "sampling"),
                InputRequest::Elicitation(_) => (declared.elicitation.is_some(), "elicitation"),
                _ => (declared.roots.is_some(), "roots"),
            };
            if !declared {
                missing[capability] = json!({});
            }
            declared
        });
        if asked.is_empty() {
            let missing: ClientCapabilities = serde_json::from_value(missing).unwrap();
            return Err(ErrorData::missing_required_client_capability(missing));
        }
        Ok(asked)
    }

    async fn by_requests(self, context: &RequestContext<RoleServer>) -> Result<Asked, ErrorData> {
        let mut responses = InputResponses::new();
        for round in self.rounds {
            for (key, request) in requests(round, self.arguments) {
                let response = one_request(request, context).await;
                responses.insert(key, response.map_err(|error| ErrorData::internal_error(error.to_string(), None))?);
            }
        }
        Ok(Asked::All(responses))
    }
}

async fn one_request(request: InputRequest, context: &RequestContext<RoleServer>) -> Result<Value, ServiceError> {
    let answer = match request {
        InputRequest::CreateMessage(request) => json!(context.peer.create_message(request.params).await?),
        InputRequest::Elicitation(request) => {
            let params: ElicitRequestParams = request.params;
            json!(context.peer.create_elicitation(params).await?)
        }
        _ => json!(context.peer.list_roots().await?),
    };
    Ok(answer)
}

/// Whether the client speaks a revision without a handshake.
pub(crate) fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28)
}
