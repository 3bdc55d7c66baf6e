//! W3C trace context (<https://www.w3.org/TR/trace-context/>).

use mcpscope_core::{SpanId, TraceContext, TraceId};

/// Reads a `traceparent` value; nothing if it is not valid, as the specification asks.
#[must_use]
pub fn parse_traceparent(text: &str) -> Option<TraceContext> {
    let mut parts = text.splitn(5, '-');
    let (version, trace_id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version = lower_hex_byte(version).filter(|version| *version != 0xff)?;
    // Version 00 has exactly four parts; later ones may add to them.
    if version == 0 && parts.next().is_some() {
        return None;
    }
    let flags = lower_hex_byte(flags)?;
    Some(TraceContext { trace_id: TraceId::parse(trace_id)?, parent: SpanId::parse(parent)?, sampled: flags & 1 == 1 })
}

/// Writes a `traceparent` value, version 00.
#[must_use]
pub fn traceparent(context: &TraceContext) -> String {
    // Once for every request that is passed on with it: several times as fast as formatting.
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex(&mut text[3..35], &context.trace_id.0.get().to_be_bytes());
    write_hex(&mut text[36..52], &context.parent.0.get().to_be_bytes());
    write_hex(&mut text[53..], &[u8::from(context.sampled)]);
    String::from_utf8_lossy(&text).into_owned()
}

fn write_hex(into: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in into.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
    }
}

fn lower_hex_byte(text: &str) -> Option<u8> {
    let ok = text.len() == 2 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ok { u8::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_what_the_specification_shows() {
        let context = parse_traceparent(VALID).unwrap();
        assert!(context.sampled);
        assert_eq!(traceparent(&context), VALID);
        assert!(!parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().sampled);
        assert!(
            parse_traceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes-later").is_some()
        );
    }

    #[test]
    fn refuses_what_the_specification_refuses() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse_traceparent(bad), None, "{bad}");
        }
    }

    // The cases of the specification's own test suite (w3c/trace-context, test/test.py).

    const TRACE: &str = "12345678901234567890123456789012";
    const PARENT: &str = "1234567890123456";

    #[test]
    fn reads_what_the_test_suite_wants_inherited() {
        for text in [
            format!("00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-00"),
            format!("cc-{TRACE}-{PARENT}-01"),
            format!("cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like"),
        ] {
            assert_eq!(parse_traceparent(&text).map(|context| context.trace_id.to_string()).as_deref(), Some(TRACE));
        }
    }

    #[test]
    fn refuses_what_the_test_suite_wants_discarded() {
        for bad in [
            format!("00-{TRACE}-{PARENT}-01."),
            format!("00-{TRACE}-{PARENT}-01-what-the-future-will-be-like"),
            format!("cc-{TRACE}-{PARENT}-01.what-the-future-will-be-like"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!(".0-{TRACE}-{PARENT}-01"),
            format!("0.-{TRACE}-{PARENT}-01"),
            format!("000-{TRACE}-{PARENT}-01"),
            format!("0000-{TRACE}-{PARENT}-01"),
            format!("0-{TRACE}-{PARENT}-01"),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-.2345678901234567890123456789012-{PARENT}-01"),
            format!("00-1234567890123456789012345678901.-{PARENT}-01"),
            format!("00-{TRACE}3-{PARENT}-01"),
            format!("00-1234567890123456789012345678901-{PARENT}-01"),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-.234567890123456-01"),
            format!("00-{TRACE}-123456789012345.-01"),
            format!("00-{TRACE}-{PARENT}7-01"),
            format!("00-{TRACE}-123456789012345-01"),
            format!("00-{TRACE}-{PARENT}-.0"),
            format!("00-{TRACE}-{PARENT}-0."),
            format!("00-{TRACE}-{PARENT}-001"),
            format!("00-{TRACE}-{PARENT}-1"),
            // Wrong separators, and what only a header may have around it.
            format!("00_{TRACE}_{PARENT}_01"),
            format!("00-{TRACE}-{PARENT}_01"),
            format!(" 00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01 "),
            format!("CC-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-0A"),
            "00-ABCDEF78901234567890123456789012-1234567890123456-01".to_owned(),
        ] {
            assert_eq!(parse_traceparent(&bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = parse_traceparent(&text);
        }

        #[test]
        fn what_is_read_is_what_was_written(trace in 1_u128.., span in 1_u64.., sampled in any::<bool>()) {
            let context = TraceContext {
                trace_id: TraceId(trace.try_into().unwrap()),
                parent: SpanId(span.try_into().unwrap()),
                sampled,
            };
            prop_assert_eq!(parse_traceparent(&traceparent(&context)), Some(context));
        }
    }
}
