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
    format!("00-{}-{}-{:02x}", context.trace_id, context.parent, u8::from(context.sampled))
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
