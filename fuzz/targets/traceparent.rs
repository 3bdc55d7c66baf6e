//! `traceparent` values: what is read is exactly what W3C trace context allows, and writing it gives it back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpscope_tracing::{parse_traceparent, traceparent};

fuzz_target!(|text: &str| {
    let read = parse_traceparent(text);
    assert_eq!(read.is_some(), allowed(text.as_bytes()), "{text:?}");
    if let Some(context) = read {
        let written = traceparent(&context);
        assert_eq!(parse_traceparent(&written), Some(context), "{text:?}");
        // Version and flags are our own; the ids between them are what came.
        assert_eq!(written[2..53], text[2..53]);
    }
});

/// The rules of <https://www.w3.org/TR/trace-context/>, byte by byte.
fn allowed(text: &[u8]) -> bool {
    let Some((head, more)) = text.split_at_checked(55) else { return false };
    let well_formed = head.iter().enumerate().all(|(at, byte)| match at {
        2 | 35 | 52 => *byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    });
    let not_zero = |id: &[u8]| id.iter().any(|byte| *byte != b'0');
    let ends = more.is_empty() || (&head[..2] != b"00" && more[0] == b'-');
    well_formed && &head[..2] != b"ff" && not_zero(&head[3..35]) && not_zero(&head[36..52]) && ends
}
