//! Which traces a reader wants.

use std::time::{Duration, SystemTime};

use crate::record::{Status, Trace};

/// Which traces are wanted; the default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this operation, exactly.
    pub operation: Option<String>,
    /// Of this method.
    pub method: Option<String>,
    /// That ended like this.
    pub status: Option<Status>,
    /// Of this tool.
    pub tool: Option<String>,
    /// Of this server.
    pub server: Option<String>,
    /// Of this session.
    pub session: Option<String>,
    /// With this in its operation, server, session or id, in capital letters or small ones.
    pub text: Option<String>,
    /// Which a fault touched, or which none did.
    pub injected: Option<bool>,
    /// That took at least this long.
    pub min_duration: Option<Duration>,
    /// That began at or after this time.
    pub since: Option<SystemTime>,
    /// That began before this time.
    pub until: Option<SystemTime>,
    /// No more than this many.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether it wants this trace; how many it wants is not looked at.
    #[must_use]
    pub fn wants(&self, trace: &Trace) -> bool {
        fn same<T: PartialEq + ?Sized>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none() || wanted == found
        }
        same(self.operation.as_deref(), Some(&trace.operation))
            && same(self.method.as_deref(), Some(&trace.method))
            && same(self.status.as_ref(), Some(&trace.status))
            && same(self.tool.as_deref(), trace.tool.as_deref())
            && same(self.server.as_deref(), Some(&trace.server))
            && same(self.session.as_deref(), trace.session.as_deref())
            && self.text.as_deref().is_none_or(|text| holds(trace, text))
            && same(self.injected.as_ref(), Some(&trace.injected))
            && self.min_duration.is_none_or(|min| trace.duration >= min)
            && self.since.is_none_or(|since| trace.timestamp >= since)
            && self.until.is_none_or(|until| trace.timestamp < until)
    }
}

/// Whether one of the texts by which people look for it contains this.
fn holds(trace: &Trace, text: &str) -> bool {
    let (text, id) = (text.to_lowercase(), trace.id.to_string());
    let fields = [Some(&*trace.operation), Some(&*trace.server), trace.session.as_deref(), Some(&*id)];
    fields.into_iter().flatten().any(|field| field.to_lowercase().contains(&text))
}
