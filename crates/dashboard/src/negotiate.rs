//! Which format a client likes best.

use http::HeaderMap;
use http::header::ACCEPT;
use mcpscope_hub::metrics::Format;
use mediatype::names::{_STAR, CHARSET, Q};
use mediatype::{MediaType, MediaTypeList, Name, ReadParams};

const VERSION: Name<'_> = Name::new_unchecked("version");

/// How much a format is liked, 0 to 1, and how exactly it was named.
type Liking = (f32, u8);

/// A media type and its version, where it has one.
type Kind = (&'static str, &'static str, &'static str);

const PROMETHEUS: Kind = ("text", "plain", "0.0.4");
const OPENMETRICS: Kind = ("application", "openmetrics-text", "1.0.0");
const HTML: Kind = ("text", "html", "");
const JSON: Kind = ("application", "json", "");

/// The format that the client likes better (RFC 9110, section 12.5.1), and Prometheus' own where it does not care, or likes
/// neither: whoever asks for metrics can read that one.
pub(crate) fn format(headers: &HeaderMap) -> Format {
    if prefers(headers, OPENMETRICS, PROMETHEUS) { Format::OpenMetrics } else { Format::Prometheus }
}

/// Whether the client likes HTML better than JSON, as a browser does that is to show something to a person.
pub(crate) fn prefers_html(headers: &HeaderMap) -> bool {
    prefers(headers, HTML, JSON)
}

fn prefers(headers: &HeaderMap, one: Kind, other: Kind) -> bool {
    let lines = || headers.get_all(ACCEPT).into_iter().filter_map(|line| line.to_str().ok());
    let liking = |kind| lines().flat_map(MediaTypeList::new).flatten().filter_map(move |range| liking(&range, kind));
    // Of the ranges that a format is in, the most exact one tells.
    let of = |kind| liking(kind).max_by_key(|(_, exactness)| *exactness).unwrap_or((0.0, 0));
    let (one, other) = (of(one), of(other));
    // At equal weights, who names it has a reason to.
    one.0 > 0.0 && one > other
}

/// What a media range says of a format; nothing if it is not in it, or its weight is none.
fn liking(range: &MediaType<'_>, (ty, subty, version): Kind) -> Option<Liking> {
    let weight = range.get_param(Q).map_or(Some(1.0), |weight| weight.as_str().parse().ok())?;
    let given = |name| range.get_param(name).map(|value| value.unquoted_str().into_owned());
    let versioned = given(VERSION);
    // Other parameters, such as `escaping`, are about names that ours never are.
    let is_in = (range.ty == _STAR && range.subty == _STAR || range.ty == ty)
        && (range.subty == _STAR || range.subty == subty)
        && range.suffix.is_none()
        && versioned.as_deref().is_none_or(|given| given == version)
        && given(CHARSET).is_none_or(|charset| charset.eq_ignore_ascii_case("utf-8"));
    let exactness = [range.ty != _STAR, range.subty != _STAR, versioned.is_some()].map(u8::from).iter().sum();
    (is_in && (0.0..=1.0).contains(&weight)).then_some((weight, exactness))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn check(lines: &[&str], expected: Format) {
        let headers = lines.iter().map(|line| (ACCEPT, HeaderValue::from_str(line).unwrap())).collect();
        assert_eq!(format(&headers), expected, "{lines:?}");
    }

    #[test]
    fn scrapers_get_openmetrics() {
        for line in [
            // Prometheus 2.42, the same with native histograms, 3.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,\
             application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; Charset=UTF-8",
            "application/openmetrics-text",
            "application/openmetrics-text, */*",
            "text/plain;q=0.1, application/*",
            "broken, application/openmetrics-text;q=0.5, text/html;;",
        ] {
            check(&[line], Format::OpenMetrics);
        }
        check(&["text/plain;q=0.5", "application/openmetrics-text"], Format::OpenMetrics);
    }

    #[test]
    fn all_others_get_the_old_format() {
        check(&[], Format::Prometheus);
        for line in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/json",
            // An older Prometheus.
            "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;version=2.0.0, */*;q=0.1",
            "application/openmetrics-text;charset=latin1",
            "application/openmetrics-text;q=0, */*",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.5, */*",
            "application/openmetrics-text;q=2",
            "application/openmetrics-text;q=NaN",
            "application/openmetrics-text;q=",
            "application/openmetrics-text+zip",
            "application/openmetrics-text, text/plain",
            "*/openmetrics-text",
        ] {
            check(&[line], Format::Prometheus);
        }
    }

    #[test]
    fn a_browser_that_shows_something_gets_html_and_a_program_json() {
        for (line, expected) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("text/html", true),
            ("application/json;q=0.5, text/*", true),
            ("", false),
            ("*/*", false),
            ("application/json", false),
            ("application/json, text/html", false),
            ("text/html;q=0.5, application/json", false),
            ("text/html;q=0", false),
        ] {
            let headers = [(ACCEPT, HeaderValue::from_static(line))].into_iter().collect();
            assert_eq!(prefers_html(&headers), expected, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_has_an_answer(line in "[ -~]{0,80}|(application/openmetrics-text|text/plain|[*]/[*]|[;,=\" q0-9.]){0,12}") {
            let headers = [(ACCEPT, HeaderValue::from_str(&line).unwrap())].into_iter().collect();
            let _format = format(&headers);
        }
    }
}
