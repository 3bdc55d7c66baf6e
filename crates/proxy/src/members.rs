//! Finds the members of a JSON-RPC message that observing needs, wherever in it they are, and as they are written.

use crate::json::Outline;

/// An object whose members are read. Each lies in one that stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Message,
    Params,
    /// `clientInfo` in `params`.
    Client,
    Meta,
    /// `io.modelcontextprotocol/clientInfo` in `_meta`.
    MetaClient,
    Result,
    Error,
}

/// A member that is read. What is inside of one stands right behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Member {
    Version,
    Method,
    Id,
    Params,
    Name,
    Uri,
    Protocol,
    RequestId,
    Reason,
    ProgressToken,
    Progress,
    Total,
    Client,
    ClientName,
    ClientVersion,
    Meta,
    MetaProtocol,
    MetaProgressToken,
    Traceparent,
    Tracestate,
    MetaClient,
    MetaClientName,
    MetaClientVersion,
    Result,
    IsError,
    ResultType,
    ResultProtocol,
    Error,
    Code,
    ErrorMessage,
}

/// How many there are.
const MEMBERS: usize = Member::ErrorMessage as usize + 1;

impl Object {
    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The member that has this key, quotes included, if it is read.
    fn member(self, key: &[u8]) -> Option<Member> {
        Some(match (self, key) {
            (Self::Message, br#""jsonrpc""#) => Member::Version,
            (Self::Message, br#""method""#) => Member::Method,
            (Self::Message, br#""id""#) => Member::Id,
            (Self::Message, br#""params""#) => Member::Params,
            (Self::Message, br#""result""#) => Member::Result,
            (Self::Message, br#""error""#) => Member::Error,
            (Self::Params, br#""name""#) => Member::Name,
            (Self::Params, br#""uri""#) => Member::Uri,
            (Self::Params, br#""protocolVersion""#) => Member::Protocol,
            (Self::Params, br#""requestId""#) => Member::RequestId,
            (Self::Params, br#""reason""#) => Member::Reason,
            (Self::Params, br#""progressToken""#) => Member::ProgressToken,
            (Self::Params, br#""progress""#) => Member::Progress,
            (Self::Params, br#""total""#) => Member::Total,
            (Self::Params, br#""clientInfo""#) => Member::Client,
            (Self::Params, br#""_meta""#) => Member::Meta,
            (Self::Meta, br#""io.modelcontextprotocol/protocolVersion""#) => Member::MetaProtocol,
            (Self::Meta, br#""io.modelcontextprotocol/clientInfo""#) => Member::MetaClient,
            (Self::Meta, br#""progressToken""#) => Member::MetaProgressToken,
            (Self::Meta, br#""traceparent""#) => Member::Traceparent,
            (Self::Meta, br#""tracestate""#) => Member::Tracestate,
            (Self::Client, br#""name""#) => Member::ClientName,
            (Self::Client, br#""version""#) => Member::ClientVersion,
            (Self::MetaClient, br#""name""#) => Member::MetaClientName,
            (Self::MetaClient, br#""version""#) => Member::MetaClientVersion,
            (Self::Result, br#""isError""#) => Member::IsError,
            (Self::Result, br#""resultType""#) => Member::ResultType,
            (Self::Result, br#""protocolVersion""#) => Member::ResultProtocol,
            (Self::Error, br#""code""#) => Member::Code,
            (Self::Error, br#""message""#) => Member::ErrorMessage,
            _ => return None,
        })
    }
}

impl Member {
    /// What it is if it is an object.
    fn object(self) -> Option<Object> {
        Some(match self {
            Self::Params => Object::Params,
            Self::Client => Object::Client,
            Self::Meta => Object::Meta,
            Self::MetaClient => Object::MetaClient,
            Self::Result => Object::Result,
            Self::Error => Object::Error,
            _ => return None,
        })
    }

    /// The last that is inside of it.
    fn last_inside(self) -> Self {
        match self {
            Self::Params | Self::Meta => Self::MetaClientVersion,
            Self::Client => Self::ClientVersion,
            Self::MetaClient => Self::MetaClientVersion,
            Self::Result => Self::ResultProtocol,
            Self::Error => Self::ErrorMessage,
            other => other,
        }
    }

    /// The object that it is and those inside of it, as bits.
    fn objects(self) -> u8 {
        let inside: &[Object] = match self {
            Self::Params => &[Object::Client, Object::Meta, Object::MetaClient],
            Self::Meta => &[Object::MetaClient],
            _ => &[],
        };
        self.object().iter().chain(inside).fold(0, |bits, object| bits | object.bit())
    }
}

/// What was read of one message.
#[derive(Clone, Debug)]
pub(crate) struct Members<'t> {
    text: &'t str,
    /// The message as it is written.
    message: &'t str,
    /// The values as they are written. Of duplicates the last one, like every JSON parser that MCP SDKs use.
    values: [Option<&'t str>; MEMBERS],
    /// The objects, as bits, that have one of these members twice.
    repeated: u8,
    /// The objects, as bits, that have a key which is no text.
    unreadable: u8,
}

impl<'t> Members<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, message: "", values: [None; MEMBERS], repeated: 0, unreadable: 0 }
    }

    /// All that was read, of which the message may be a part.
    pub(crate) fn text(&self) -> &'t str {
        self.text
    }

    /// The message as it is written.
    pub(crate) fn message(&self) -> &'t str {
        self.message
    }

    /// The value as it is written.
    pub(crate) fn get(&self, member: Member) -> Option<&'t str> {
        self.values[member as usize]
    }

    /// Whether there is a member twice of which the last was taken.
    pub(crate) fn is_repeated(&self, object: Object) -> bool {
        self.repeated & object.bit() != 0
    }

    /// Whether one of the object's keys has half of a surrogate pair: what it has is then for nobody to say.
    pub(crate) fn is_unreadable(&self, object: Object) -> bool {
        self.unreadable & object.bit() != 0
    }

    /// What stands between two places, without the blanks around it.
    fn between(&self, from: usize, to: usize) -> &'t str {
        self.text.get(from..to).unwrap_or_default().trim_ascii()
    }

    /// The member with this key as it is written.
    fn member(&mut self, object: Object, key: &'t str) -> Option<Member> {
        let member = object.member(key.as_bytes()).or_else(|| {
            // However it is spelled.
            let key = key.contains('\\').then(|| serde_json::from_str::<String>(key))?;
            self.unreadable |= if key.is_err() { object.bit() } else { 0 };
            object.member(format!("\"{}\"", key.ok()?).as_bytes())
        })?;
        if self.get(member).is_some() {
            self.repeated |= object.bit();
            self.forget(member);
        }
        Some(member)
    }

    /// Another with the same key takes its place.
    #[cold]
    fn forget(&mut self, member: Member) {
        let inside = member as usize..=member.last_inside() as usize;
        self.values[inside].fill(None);
        let objects = member.objects();
        self.repeated &= !objects;
        self.unreadable &= !objects;
    }
}

/// Reads the members of one message, or of each in a batch.
#[derive(Debug)]
pub(crate) struct Walk<'t, F> {
    /// The containers that are being read, from the outermost inwards.
    frames: [Frame; DEPTH],
    /// How many there are around the innermost.
    depth: usize,
    members: Members<'t>,
    /// Is told of each message; nothing if it is no object.
    message: F,
}

/// The text, a batch, a message, its parameters, their `_meta`, and the client in that.
const DEPTH: usize = 6;

#[derive(Clone, Copy, Debug)]
struct Frame {
    container: Container,
    /// Where the container begins.
    begin: usize,
    /// Where its next key or value begins.
    from: usize,
    /// Whose value that is.
    member: Option<Member>,
}

#[derive(Clone, Copy, Debug)]
enum Container {
    /// The whole text.
    Text,
    Batch,
    Object(Object),
}

impl<'t, F: FnMut(Option<&Members<'t>>)> Walk<'t, F> {
    pub(crate) fn new(text: &'t str, message: F) -> Self {
        let outermost = Frame { container: Container::Text, begin: 0, from: 0, member: None };
        Self { frames: [outermost; DEPTH], depth: 0, members: Members::new(text), message }
    }

    /// Whether the text is a batch.
    pub(crate) fn is_batch(&self) -> bool {
        matches!(self.frames[1].container, Container::Batch)
    }

    /// A value in the innermost container ends.
    fn value(&mut self, at: usize) {
        let Frame { container, from, member, .. } = self.frames[self.depth];
        if let Some(member) = member {
            self.members.values[member as usize] = Some(self.members.between(from, at));
        } else if let Container::Batch = container {
            let value = self.members.between(from, at);
            // Messages have been told of.
            if !value.is_empty() && !value.starts_with('{') {
                (self.message)(None);
            }
        }
    }
}

impl<'t, F: FnMut(Option<&Members<'t>>)> Outline for Walk<'t, F> {
    fn open(&mut self, at: usize, is_object: bool) -> bool {
        let around = self.frames[self.depth];
        let container = match around.container {
            Container::Text if !is_object => Container::Batch,
            Container::Text | Container::Batch if is_object => Container::Object(Object::Message),
            Container::Object(_) if is_object => match around.member.and_then(Member::object) {
                Some(object) => Container::Object(object),
                None => return false,
            },
            _ => return false,
        };
        if let (Container::Batch, Container::Object(Object::Message)) = (around.container, container) {
            self.members = Members::new(self.members.text);
        }
        let Some(frame) = self.frames.get_mut(self.depth + 1) else { return false };
        *frame = Frame { container, begin: at, from: at + 1, member: None };
        self.depth += 1;
        true
    }

    fn close(&mut self, at: usize) {
        self.value(at);
        let Frame { container, begin, .. } = self.frames[self.depth];
        if let Container::Object(Object::Message) = container {
            self.members.message = self.members.between(begin, at + 1);
            (self.message)(Some(&self.members));
        }
        self.depth = self.depth.saturating_sub(1);
    }

    fn colon(&mut self, at: usize) {
        let frame = &mut self.frames[self.depth];
        if let Container::Object(object) = frame.container {
            let key = self.members.between(frame.from, at);
            frame.member = self.members.member(object, key);
            frame.from = at + 1;
        }
    }

    fn comma(&mut self, at: usize) {
        self.value(at);
        let frame = &mut self.frames[self.depth];
        (frame.from, frame.member) = (at + 1, None);
    }
}
