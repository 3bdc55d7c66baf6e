//! Which connections and messages a fault is about.

use mcpscope_core::{Direction, Era, Transport};

use crate::catalogue::message_kind;
use crate::parameter::{ParameterError, Reader};
use crate::scenario::{ANYWHERE, Place, Reach, places};
use crate::{Message, MessageKind, Scenario};

/// A name in which `*` stands for any text, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Box<str>);

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        // Splitting gives at least one part.
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// Which connections and messages a fault is about. What is left out does not matter.
#[derive(Clone, Debug)]
pub(crate) struct Matcher {
    scenario: Scenario,
    reach: Reach,
    server: Option<Pattern>,
    pub(crate) transport: Option<Transport>,
    direction: Option<Direction>,
    session: Option<Pattern>,
    kind: Option<MessageKind>,
    method: Option<Pattern>,
    tool: Option<Pattern>,
    /// Which of those that match.
    pub(crate) count: Count,
}

/// Which of the messages that match, by their number, which begins with 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    nth: Option<u64>,
    every: Option<u64>,
    after: Option<u64>,
    pub(crate) max_hits: Option<u64>,
}

impl Count {
    pub(crate) fn takes(&self, number: u64) -> bool {
        self.nth.is_none_or(|nth| number == nth)
            && self.every.is_none_or(|every| number.is_multiple_of(every))
            && self.after.is_none_or(|after| number > after)
    }

    /// How many hits are to be expected of so many that match, each of which is hit with this chance.
    pub(crate) fn expected(&self, matching: f64, chance: f64) -> f64 {
        let taken = match self.nth {
            Some(nth) => f64::from(u8::from(matching >= nth as f64)),
            None => (matching - self.after.unwrap_or(0) as f64).max(0.0) / self.every.unwrap_or(1) as f64,
        };
        self.max_hits.map_or(taken * chance, |most| (taken * chance).min(most as f64))
    }
}

impl Matcher {
    pub(crate) fn read(reader: &Reader<'_>) -> Result<Self, ParameterError> {
        let scenario = reader.scenario;
        let reach = scenario.reach();
        let mut transport = match reader.choice("transport")? {
            Some("stdio") => Some(Transport::Stdio),
            Some(_) => Some(Transport::Http),
            None => None,
        };
        if let Some(transport) = transport
            && !reach.places.iter().any(|(place, _)| *place == transport)
        {
            return Err(ParameterError::Meaningless { scenario, place: transport.as_str().to_owned() });
        }
        let direction = match reader.choice("direction")? {
            Some("to_server") => Some(Direction::ToServer),
            Some("to_client") => Some(Direction::ToClient),
            Some(_) => None,
            None => reach.direction,
        };
        if let Some(own) = reach.direction.filter(|own| direction != Some(*own)) {
            if scenario.is_one_way() {
                return Err(reader.bad("direction", own.as_str()));
            }
            if scenario.is_one_way_over_http() && transport == Some(Transport::Http) {
                let what = "over HTTP it cannot be done in this direction";
                return Err(reader.contradiction(what, format!("direction={}, or transport=stdio", own.as_str())));
            }
            if scenario.is_one_way_over_http() {
                transport = Some(Transport::Stdio);
            }
        }
        let kind = reader.choice("kind")?.or(reader.choice("what")?).and_then(message_kind);
        let pattern = |name| Ok::<_, ParameterError>(reader.text(name)?.map(|text| Pattern::new(&text)));
        let method = pattern("method")?;
        if let Some(method) = &method
            && !reach.methods.is_empty()
            && !reach.methods.iter().any(|name| method.matches(name))
        {
            return Err(reader.bad("method", reach.methods.join(", ")));
        }
        let tool = pattern("tool")?;
        if tool.is_some() && !may_be_tool_call(&reach, method.as_ref()) {
            return Err(
                reader.contradiction("tool is given, but no tools/call matches", "method=tools/call, or no tool")
            );
        }
        let count = |name| Ok::<_, ParameterError>(reader.whole(name)?.map(i64::unsigned_abs));
        let count =
            Count { nth: count("nth")?, every: count("every")?, after: count("after")?, max_hits: count("max_hits")? };
        if let Some(nth) = count.nth
            && !count.takes(nth)
        {
            let what = format!("nth={nth} is never reached with `every` or `after` as they are");
            return Err(reader.contradiction(what, "nth alone, or one that the others take"));
        }
        let (server, session) = (pattern("server")?, pattern("session")?);
        if session.is_some() && transport == Some(Transport::Stdio) {
            return Err(reader.contradiction("session is given, but stdio has none", "transport=http, or no session"));
        }
        Ok(Self { scenario, reach, server, transport, direction, session, kind, method, tool, count })
    }

    /// Whether a server is one that the fault is about, whatever revision it speaks.
    pub(crate) fn takes_server(&self, server: &str, transport: Transport) -> bool {
        self.takes_name(server)
            && self.transport.is_none_or(|wanted| wanted == transport)
            && (self.session.is_none() || transport == Transport::Http)
            && self.reach.places.iter().any(|(place, _)| *place == transport)
    }

    pub(crate) fn takes_name(&self, server: &str) -> bool {
        self.server.as_ref().is_none_or(|pattern| pattern.matches(server))
    }

    /// Where the fault means something as it was asked for, as people read it; none: anywhere.
    pub(crate) fn meaningful(&self) -> Option<String> {
        let is_asked = |(transport, _): &&Place| {
            self.transport.is_none_or(|wanted| wanted == *transport)
                && (self.session.is_none() || *transport == Transport::Http)
        };
        let asked: Vec<_> = self.reach.places.iter().filter(is_asked).copied().collect();
        (asked.len() < ANYWHERE.len()).then(|| places(&asked))
    }

    /// Whether the fault means something there.
    pub(crate) fn takes_place(&self, transport: Transport, era: Era) -> bool {
        self.reach.places.contains(&(transport, era))
    }

    pub(crate) fn takes_session(&self, session: Option<&str>) -> bool {
        match (&self.session, session) {
            (Some(pattern), Some(session)) => pattern.matches(session),
            (Some(_), None) => false,
            (None, Some(_)) => true,
            // Where there is no session yet, none can be stale.
            (None, None) => self.scenario != Scenario::StaleSession,
        }
    }

    /// Whether it is about sessions that must be there already: a session that is named, and not any that may come.
    pub(crate) fn wants_open_session(&self) -> bool {
        self.takes_known_only() || self.session.as_ref().is_some_and(|pattern| &*pattern.0 != "*")
    }

    /// Whether it leaves alone the connections that open while it is active.
    pub(crate) fn takes_known_only(&self) -> bool {
        self.scenario == Scenario::StaleSession
    }

    pub(crate) fn takes_direction(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|wanted| wanted == direction)
    }

    pub(crate) fn takes_message(&self, transport: Transport, message: &Message<'_>) -> bool {
        let wanted = |pattern: &Option<Pattern>, name: Option<&str>| {
            pattern.as_ref().is_none_or(|pattern| name.is_some_and(|name| pattern.matches(name)))
        };
        let placed = match message.protocol {
            Some(protocol) => self.takes_place(transport, protocol.era()),
            // What works in either era needs no revision.
            None => [Era::Legacy, Era::Modern].into_iter().all(|era| self.takes_place(transport, era)),
        };
        // With a handshake, that alone is where a revision is agreed on.
        let agreed = self.scenario != Scenario::VersionReject
            || message.protocol.is_some_and(|protocol| protocol.era() == Era::Modern)
            || message.method == Some("initialize");
        placed
            && agreed
            && self.reach.kinds.contains(&message.kind)
            && self.kind.is_none_or(|kind| kind == message.kind)
            && (self.reach.methods.is_empty() || message.method.is_some_and(|name| self.reach.methods.contains(&name)))
            && wanted(&self.method, message.method)
            && wanted(&self.tool, message.tool)
    }
}

fn may_be_tool_call(reach: &Reach, method: Option<&Pattern>) -> bool {
    let call = "tools/call";
    (reach.methods.is_empty() || reach.methods.contains(&call)) && method.is_none_or(|method| method.matches(call))
}

#[cfg(test)]
mod tests {
    use mcpscope_core::Protocol;

    use super::*;
    use crate::Parameters;

    fn matcher(scenario: Scenario, pairs: &[&str]) -> Result<Matcher, ParameterError> {
        let parameters = Parameters::from_pairs(pairs.iter().copied()).unwrap();
        Matcher::read(&Reader::new(scenario, &parameters)?)
    }

    fn call(method: &'static str, tool: Option<&'static str>) -> Message<'static> {
        let kind = MessageKind::Request;
        Message { kind, method: Some(method), tool, protocol: Some(Protocol::V2025_11_25) }
    }

    #[test]
    fn a_star_stands_for_anything() {
        let matches = |pattern: &str, name| Pattern::new(pattern).matches(name);
        for (pattern, name) in [("*", ""), ("*", "x"), ("a*", "a"), ("a*c", "abc"), ("a*b*", "axxb"), ("abc", "abc")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("", "x"), ("a*a", "a"), ("a", "ab"), ("*b", "ba"), ("a*b*c", "acb")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn a_message_is_taken_by_method_and_tool() {
        let wanted = matcher(Scenario::RpcError, &["tool=ec*", "server=demo"]).unwrap();
        assert!(wanted.takes_message(Transport::Stdio, &call("tools/call", Some("echo"))));
        assert!(!wanted.takes_message(Transport::Stdio, &call("tools/call", Some("add"))));
        assert!(!wanted.takes_message(Transport::Stdio, &call("tools/list", None)));
        let answer = Message { kind: MessageKind::Response, ..call("tools/call", Some("echo")) };
        assert!(!wanted.takes_message(Transport::Stdio, &answer), "an error takes the place of a request's answer");
        assert!(wanted.takes_server("demo", Transport::Http) && !wanted.takes_server("other", Transport::Http));
    }

    #[test]
    fn a_fault_of_one_era_leaves_the_other_alone() {
        let stale = matcher(Scenario::StaleSession, &[]).unwrap();
        assert!(stale.takes_message(Transport::Http, &call("tools/list", None)));
        let modern = Message { protocol: Some(Protocol::V2026_07_28), ..call("tools/list", None) };
        assert!(!stale.takes_message(Transport::Http, &modern));
        let unknown = Message { protocol: None, ..modern };
        assert!(!stale.takes_message(Transport::Http, &unknown));
        assert!(
            matcher(Scenario::Hang, &["direction=both"])
                .unwrap()
                .takes_message(Transport::Http, &Message { kind: MessageKind::Response, ..unknown })
        );
    }

    #[test]
    fn what_cannot_be_done_over_http_in_a_direction_is_about_stdio() {
        let asked = matcher(Scenario::RpcError, &["direction=to_client"]).unwrap();
        assert_eq!([Transport::Stdio, Transport::Http].map(|place| asked.takes_server("s", place)), [true, false]);
        let both = matcher(Scenario::LostRequest, &["direction=both"]).unwrap();
        assert!(both.takes_server("s", Transport::Http));
    }

    #[test]
    fn counts_choose_among_those_that_match() {
        let taken = |pairs: &[&str]| {
            let count = matcher(Scenario::RpcError, pairs).unwrap().count;
            (1..=10).filter(|number| count.takes(*number)).collect::<Vec<u64>>()
        };
        assert_eq!(taken(&["nth=3"]), [3]);
        assert_eq!(taken(&["every=4"]), [4, 8]);
        assert_eq!(taken(&["every=4", "after=4"]), [8]);
        assert_eq!(taken(&["after=8"]), [9, 10]);
    }

    #[test]
    fn what_cannot_match_is_refused() {
        for (scenario, pairs, expected) in [
            (Scenario::HttpStatus, &["transport=stdio"][..], "means nothing over stdio: expected HTTP"),
            (Scenario::ToolError, &["method=tools/list"], "expected tools/call"),
            (Scenario::RpcError, &["tool=echo", "method=ping"], "expected method=tools/call"),
            (Scenario::RpcError, &["nth=3", "every=2"], "nth=3 is never reached"),
            (Scenario::RpcError, &["nth=0"], "a whole number from 1"),
            (Scenario::NetworkPartition, &["tool=echo"], "expected one of intensity, mode, heal"),
            (Scenario::HttpStatus, &["direction=to_client"], "direction is \"to_client\": expected to_server"),
            (Scenario::StdoutNoise, &["direction=both"], "direction is \"both\": expected to_client"),
            (Scenario::RpcError, &["direction=to_client", "transport=http"], "direction=to_server, or transport=stdio"),
            (Scenario::Hang, &["session=a", "transport=stdio"], "expected transport=http, or no session"),
        ] {
            let message = matcher(scenario, pairs).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
