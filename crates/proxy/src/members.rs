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

    /// The member that has this key, if it is read.
    fn member(self, key: &[u8]) -> Option<Member> {
        // A `match` would compare byte by byte; this first compares lengths, and then all bytes at once.
        macro_rules! find {
            ($($name:literal => $member:ident),+ $(,)?) => {
                match key {
                    $(key if key == $name => Member::$member,)+
                    _ => return None,
                }
            };
        }
        Some(match self {
            Self::Message => find! {
                b"jsonrpc" => Version,
                b"method" => Method,
                b"id" => Id,
                b"params" => Params,
                b"result" => Result,
                b"error" => Error,
            },
            Self::Params => find! {
                b"name" => Name,
                b"uri" => Uri,
                b"protocolVersion" => Protocol,
                b"requestId" => RequestId,
                b"reason" => Reason,
                b"progressToken" => ProgressToken,
                b"progress" => Progress,
                b"total" => Total,
                b"clientInfo" => Client,
                b"_meta" => Meta,
            },
            Self::Meta => find! {
                b"io.modelcontextprotocol/protocolVersion" => MetaProtocol,
                b"io.modelcontextprotocol/clientInfo" => MetaClient,
                b"progressToken" => MetaProgressToken,
                b"traceparent" => Traceparent,
                b"tracestate" => Tracestate,
            },
            Self::Client => find! {
                b"name" => ClientName,
                b"version" => ClientVersion,
            },
            Self::MetaClient => find! {
                b"name" => MetaClientName,
                b"version" => MetaClientVersion,
            },
            Self::Result => find! {
                b"isError" => IsError,
                b"resultType" => ResultType,
                b"protocolVersion" => ResultProtocol,
            },
            Self::Error => find! {
                b"code" => Code,
                b"message" => ErrorMessage,
            },
        })
    }
}

impl Member {
    fn bit(self) -> u32 {
        1 << self as u32
    }

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
    /// Where the message begins and ends.
    message: (usize, usize),
    /// Between which places the values are, of those that were found. Of duplicates the last one, like every JSON parser
    /// that MCP SDKs use.
    values: [(usize, usize); MEMBERS],
    /// The members that were found, as bits.
    found: u32,
    /// The objects, as bits, that have one of these members twice.
    repeated: u8,
    /// The objects, as bits, that have a key which is no text.
    unreadable: u8,
}

impl<'t> Members<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, message: (0, 0), values: [(0, 0); MEMBERS], found: 0, repeated: 0, unreadable: 0 }
    }

    /// Another message begins.
    fn clear(&mut self) {
        (self.found, self.repeated, self.unreadable) = (0, 0, 0);
    }

    /// All that was read, of which the message may be a part.
    pub(crate) fn text(&self) -> &'t str {
        self.text
    }

    /// The message as it is written.
    pub(crate) fn message(&self) -> &'t str {
        self.between(self.message)
    }

    /// The value as it is written.
    pub(crate) fn get(&self, member: Member) -> Option<&'t str> {
        self.has(member).then(|| self.between(self.values[member as usize]))
    }

    pub(crate) fn has(&self, member: Member) -> bool {
        self.found & member.bit() != 0
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
    fn between(&self, (from, to): (usize, usize)) -> &'t str {
        let between = self.text.get(from..to).unwrap_or_default();
        let is_blank = |byte: Option<&u8>| byte.is_some_and(|byte| *byte <= b' ');
        if is_blank(between.as_bytes().first()) || is_blank(between.as_bytes().last()) {
            return between.trim_ascii();
        }
        between
    }

    /// The member whose key stands between two places.
    fn member(&mut self, object: Object, from: usize, to: usize) -> Option<Member> {
        let member = match self.text.as_bytes().get(from..to)? {
            [b'"', key @ .., b'"'] => object.member(key),
            key => object.member(key.trim_ascii().strip_prefix(b"\"")?.strip_suffix(b"\"")?),
        };
        let member = member.or_else(|| self.spelled(object, from, to))?;
        if self.has(member) {
            self.repeated |= object.bit();
            self.forget(member);
        }
        Some(member)
    }

    /// The same, however the key is spelled.
    fn spelled(&mut self, object: Object, from: usize, to: usize) -> Option<Member> {
        let key = self.between((from, to));
        let key = key.contains('\\').then(|| serde_json::from_str::<String>(key))?;
        self.unreadable |= if key.is_err() { object.bit() } else { 0 };
        object.member(key.ok()?.as_bytes())
    }

    /// Another with the same key takes its place.
    #[cold]
    fn forget(&mut self, member: Member) {
        // Bits up to the last one inside of it.
        let last = member.last_inside().bit();
        self.found &= !((last | (last - 1)) & !(member.bit() - 1));
        let objects = member.objects();
        self.repeated &= !objects;
        self.unreadable &= !objects;
    }
}

/// Reads the members of one message, or of each in a batch.
#[derive(Debug)]
pub(crate) struct Walk<'t, F> {
    /// The innermost container that is being read.
    here: Frame,
    /// Those around it, from the outermost inwards.
    around: [Frame; DEPTH],
    /// How many these are.
    depth: usize,
    is_batch: bool,
    members: Members<'t>,
    /// Is told of each message; nothing if it is no object.
    message: F,
}

/// The text, a batch, a message, its parameters, and their `_meta`: what may be around a container.
const DEPTH: usize = 5;

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
        let here = Frame { container: Container::Text, begin: 0, from: 0, member: None };
        Self { here, around: [here; DEPTH], depth: 0, is_batch: false, members: Members::new(text), message }
    }

    /// Whether the text is a batch.
    pub(crate) fn is_batch(&self) -> bool {
        self.is_batch
    }

    /// A value in the innermost container ends.
    #[inline(always)]
    fn value(&mut self, at: usize) {
        let Frame { container, from, member, .. } = self.here;
        if let Some(member) = member {
            self.members.values[member as usize] = (from, at);
            self.members.found |= member.bit();
        } else if let Container::Batch = container {
            let value = self.members.between((from, at));
            // Messages have been told of.
            if !value.is_empty() && !value.starts_with('{') {
                (self.message)(None);
            }
        }
    }
}

impl<'t, F: FnMut(Option<&Members<'t>>)> Outline for Walk<'t, F> {
    fn open(&mut self, at: usize, is_object: bool) -> bool {
        let container = match self.here.container {
            Container::Text if !is_object => Container::Batch,
            Container::Text | Container::Batch if is_object => Container::Object(Object::Message),
            Container::Object(_) if is_object => match self.here.member.and_then(Member::object) {
                Some(object) => Container::Object(object),
                None => return false,
            },
            _ => return false,
        };
        match (self.here.container, container) {
            (_, Container::Batch) => self.is_batch = true,
            (Container::Batch, _) => self.members.clear(),
            _ => {}
        }
        let Some(around) = self.around.get_mut(self.depth) else { return false };
        *around = self.here;
        self.here = Frame { container, begin: at, from: at + 1, member: None };
        self.depth += 1;
        true
    }

    fn close(&mut self, at: usize) {
        self.value(at);
        let Frame { container, begin, .. } = self.here;
        if let Container::Object(Object::Message) = container {
            self.members.message = (begin, at + 1);
            (self.message)(Some(&self.members));
        }
        self.depth = self.depth.saturating_sub(1);
        if let Some(around) = self.around.get(self.depth) {
            self.here = *around;
        }
    }

    #[inline(always)]
    fn colon(&mut self, at: usize) {
        if let Container::Object(object) = self.here.container {
            self.here.member = self.members.member(object, self.here.from, at);
            self.here.from = at + 1;
        }
    }

    #[inline(always)]
    fn comma(&mut self, at: usize) {
        self.value(at);
        (self.here.from, self.here.member) = (at + 1, None);
    }
}
