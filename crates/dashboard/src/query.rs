//! Query parameters.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use mcpscope_core::bounded;
use mcpscope_hub::tracing::{Filter, Status};

use crate::problem::Problem;

/// How many traces or experiments are listed when nobody says.
const DEFAULT_LIMIT: usize = 100;

const TRACE_PARAMETERS: &str =
    "operation, method, status, tool, server, session, text, injected, min_duration, since, until, limit";

/// Refuses any parameter, for an endpoint that takes none: one that is ignored would look as if it worked.
pub(crate) fn none(query: &str) -> Result<(), Problem> {
    match form_urlencoded::parse(query.as_bytes()).next() {
        Some((name, _)) => {
            Err(Problem::bad_request(format!("unknown parameter {:?}: this endpoint takes none", shown(&name))))
        }
        None => Ok(()),
    }
}

/// Whether a WebSocket's large messages are to be compressed.
pub(crate) fn gzip_socket(query: &str) -> Result<bool, Problem> {
    let mut gzip = false;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*name, &*value) {
            ("encoding", "gzip") if gzip => return Err(Problem::bad_request("parameter encoding is given twice")),
            ("encoding", "gzip") => gzip = true,
            ("encoding", _) => return Err(wrong(&name, "gzip", &value)),
            _ => {
                let detail = format!("unknown parameter {:?}: expected encoding or none", shown(&name));
                return Err(Problem::bad_request(detail));
            }
        }
    }
    Ok(gzip)
}

/// Which traces are asked for.
pub(crate) fn traces(query: &str) -> Result<Filter, Problem> {
    let mut filter = Filter::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let name = &*name;
        let twice = match name {
            "operation" => filter.operation.replace(value.into_owned()).is_some(),
            "method" => filter.method.replace(value.into_owned()).is_some(),
            "tool" => filter.tool.replace(value.into_owned()).is_some(),
            "server" => filter.server.replace(value.into_owned()).is_some(),
            "session" => filter.session.replace(value.into_owned()).is_some(),
            "text" => filter.text.replace(value.into_owned()).is_some(),
            "injected" => filter.injected.replace(yes_or_no(name, &value)?).is_some(),
            "status" => filter.status.replace(status(name, &value)?).is_some(),
            "min_duration" => filter.min_duration.replace(duration(name, &value)?).is_some(),
            "since" => filter.since.replace(time(name, &value)?).is_some(),
            "until" => filter.until.replace(time(name, &value)?).is_some(),
            "limit" => filter.limit.replace(limit(name, &value)?).is_some(),
            _ => {
                let detail = format!("unknown parameter {:?}: expected one of {TRACE_PARAMETERS}", shown(name));
                return Err(Problem::bad_request(detail));
            }
        };
        if twice {
            return Err(Problem::bad_request(format!("parameter {name} is given twice")));
        }
    }
    filter.limit.get_or_insert(DEFAULT_LIMIT);
    Ok(filter)
}

/// How many experiments are asked for.
pub(crate) fn history(query: &str) -> Result<usize, Problem> {
    let mut most = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "limit" {
            let detail = format!("unknown parameter {:?}: expected limit or none", shown(&name));
            return Err(Problem::bad_request(detail));
        }
        if most.replace(limit(&name, &value)?).is_some() {
            return Err(Problem::bad_request("parameter limit is given twice"));
        }
    }
    Ok(most.unwrap_or(DEFAULT_LIMIT))
}

/// How a report can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Html,
}

/// How a report is to be shown, if it is said.
pub(crate) fn report(query: &str) -> Result<Option<Format>, Problem> {
    let mut format = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let found = match (&*name, &*value) {
            ("format", "json") => Format::Json,
            ("format", "html") => Format::Html,
            ("format", _) => return Err(wrong(&name, "json or html", &value)),
            _ => {
                let detail = format!("unknown parameter {:?}: expected format or none", shown(&name));
                return Err(Problem::bad_request(detail));
            }
        };
        if format.replace(found).is_some() {
            return Err(Problem::bad_request("parameter format is given twice"));
        }
    }
    Ok(format)
}

fn status(name: &str, value: &str) -> Result<Status, Problem> {
    Status::parse(value).ok_or_else(|| wrong(name, "one of ok, error, timeout, cancelled", value))
}

fn yes_or_no(name: &str, value: &str) -> Result<bool, Problem> {
    value.parse().map_err(|_| wrong(name, "true or false", value))
}

/// A number of ms, or a number with its unit.
fn duration(name: &str, value: &str) -> Result<Duration, Problem> {
    let parsed = match value.parse::<f64>() {
        Ok(ms) => Duration::try_from_secs_f64(ms / 1e3).ok(),
        Err(_) => humantime::parse_duration(value).ok(),
    };
    parsed.ok_or_else(|| wrong(name, "a duration such as 30s or 200ms, or a number of milliseconds", value))
}

fn time(name: &str, value: &str) -> Result<SystemTime, Problem> {
    let time = value.parse().ok().and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    time.ok_or_else(|| wrong(name, "milliseconds since the epoch, a whole number", value))
}

fn limit(name: &str, value: &str) -> Result<usize, Problem> {
    value.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| wrong(name, "a whole number, 1 or more", value))
}

fn wrong(name: &str, expected: &str, found: &str) -> Problem {
    Problem::bad_request(format!("parameter {name}: expected {expected}; found {:?}", shown(found)))
}

fn shown(text: &str) -> Cow<'_, str> {
    Cow::Borrowed(bounded(text, 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_understood() {
        let query = "operation=tools%2Fcall+echo&method=tools/call&status=error&tool=echo&server=s&session=1%2F2\
                     &text=ech&injected=true&min_duration=1.5&since=1000&until=2000&limit=7";
        let epoch = SystemTime::UNIX_EPOCH;
        let expected = Filter {
            operation: Some("tools/call echo".into()),
            method: Some("tools/call".into()),
            status: Some(Status::Error),
            tool: Some("echo".into()),
            server: Some("s".into()),
            session: Some("1/2".into()),
            text: Some("ech".into()),
            injected: Some(true),
            min_duration: Some(Duration::from_micros(1500)),
            since: Some(epoch + Duration::from_secs(1)),
            until: Some(epoch + Duration::from_secs(2)),
            limit: Some(7),
        };
        assert_eq!(traces(query), Ok(expected));
        assert_eq!(traces(""), Ok(Filter { limit: Some(100), ..Filter::default() }));
    }

    #[test]
    fn a_socket_is_plain_or_gzip() {
        assert_eq!(gzip_socket(""), Ok(false));
        assert_eq!(gzip_socket("encoding=gzip"), Ok(true));
        for (query, expected) in [
            ("encoding=br", "parameter encoding: expected gzip; found \"br\""),
            ("encoding", "parameter encoding: expected gzip; found \"\""),
            ("encoding=gzip&encoding=gzip", "parameter encoding is given twice"),
            ("x=1", "unknown parameter \"x\": expected encoding or none"),
        ] {
            assert_eq!(gzip_socket(query).unwrap_err().detail(), expected);
        }
    }

    #[test]
    fn durations_are_ms_or_carry_their_unit() {
        for (text, expected) in [("30s", 30_000), ("200ms", 200), ("250", 250), ("1m 1s", 61_000), ("0", 0)] {
            assert_eq!(duration("d", text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for bad in ["", "-1", "nan", "inf", "1e300", "5 apples", "s"] {
            assert!(duration("d", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_right() {
        for (query, expected) in [
            ("status=fine", "parameter status: expected one of ok, error, timeout, cancelled; found \"fine\""),
            ("since=-1", "parameter since: expected milliseconds since the epoch, a whole number; found \"-1\""),
            (
                "until=99999999999999999999",
                "parameter until: expected milliseconds since the epoch, a whole number; found \"99999999999999999999\"",
            ),
            ("injected=yes", "parameter injected: expected true or false; found \"yes\""),
            ("limit=all", "parameter limit: expected a whole number, 1 or more; found \"all\""),
            ("limit=0", "parameter limit: expected a whole number, 1 or more; found \"0\""),
            ("tool=a&tool=b", "parameter tool is given twice"),
            (
                "stauts=ok",
                "unknown parameter \"stauts\": expected one of operation, method, status, tool, server, \
                 session, text, injected, min_duration, since, until, limit",
            ),
        ] {
            assert_eq!(traces(query).unwrap_err().detail(), expected);
        }
        for (query, expected) in [
            ("limit=0", "parameter limit: expected a whole number, 1 or more; found \"0\""),
            ("limit=1&limit=2", "parameter limit is given twice"),
            ("most=3", "unknown parameter \"most\": expected limit or none"),
        ] {
            assert_eq!(history(query).unwrap_err().detail(), expected);
        }
        for (query, expected) in [
            ("format=pdf", "parameter format: expected json or html; found \"pdf\""),
            ("format=html&format=json", "parameter format is given twice"),
            ("x=1", "unknown parameter \"x\": expected format or none"),
        ] {
            assert_eq!(report(query).unwrap_err().detail(), expected);
        }
        assert_eq!((report(""), report("format=html")), (Ok(None), Ok(Some(Format::Html))));
        assert_eq!((history(""), history("limit=7")), (Ok(100), Ok(7)));
        assert_eq!(none("x=1").unwrap_err().detail(), "unknown parameter \"x\": this endpoint takes none");
        assert_eq!(none(""), Ok(()));
    }
}
