//! Splitting a stream into messages: every byte goes on, in order, however the stream is cut and held; and which messages
//! are seen depends on the stream alone.
//!
//! The first three bytes of an input choose framing, limit and verdicts. In the rest, the stream, two bytes that UTF-8
//! never has are instructions: 0xff ends a piece, 0xfe ends it and begins or ends holding.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use mcpscope_core::{Effect, FaultId, Injection};
use mcpscope_hooks::Passage;
use mcpscope_proxy::fuzzing::{Part, Tap};

const CUT: u8 = 0xff;
const CUT_AND_SWITCH: u8 = 0xfe;

fuzz_target!(|input: &[u8]| {
    let [framing, limit, verdicts, script @ ..] = input else { return };
    let max = if *limit == b'-' { 1 << 20 } else { usize::from(*limit) };
    let tap = || match framing % 3 {
        0 => Tap::lines(max),
        1 => Tap::events(max),
        _ => Tap::body(max),
    };
    let pieces = pieces(script);
    let stream: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();

    let (whole, expected) = run(tap(), &[(&stream, false)], 0);
    assert_eq!(whole, stream, "in one piece");
    let (parts, seen) = run(tap(), &pieces, *verdicts);
    assert_eq!(parts, stream, "in {} pieces", pieces.len());
    assert_eq!(seen, expected, "in {} pieces", pieces.len());
    if max > stream.len() {
        check(framing % 3, &stream, &seen);
    }
});

/// The pieces of the stream, and whether a fault is active when they arrive.
fn pieces(script: &[u8]) -> Vec<(&[u8], bool)> {
    let mut hold = false;
    script
        .split_inclusive(|byte| matches!(*byte, CUT | CUT_AND_SWITCH))
        .map(|piece| match piece {
            [bytes @ .., CUT] => (bytes, hold),
            [bytes @ .., CUT_AND_SWITCH] => {
                hold = !hold;
                (bytes, !hold)
            }
            bytes => (bytes, hold),
        })
        .collect()
}

/// What goes on, dropped or not, and what is seen; nothing of a message that is too large.
fn run(mut tap: Tap, pieces: &[(&[u8], bool)], verdicts: u8) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
    let due = Instant::now();
    let (mut parts, mut seen): (Vec<Part>, _) = (Vec::new(), Vec::new());
    let mut judge = |message: Option<&[u8]>| {
        // Two bits for each message in turn.
        let verdict = (verdicts >> (2 * (seen.len() % 4))) & 3;
        seen.push(message.map(<[u8]>::to_vec));
        match verdict {
            1 => Passage::new(vec![Injection { fault: FaultId(1), effect: Effect::Duplicate, ends: due }], due),
            2 => Passage::Never,
            _ => Passage::Now,
        }
    };
    for (bytes, hold) in pieces {
        parts.extend(tap.feed(bytes, *hold, &mut judge));
    }
    parts.extend(tap.end(&mut judge));
    (parts.into_iter().flat_map(|(bytes, _)| bytes).collect(), seen)
}

/// Where the messages are plain to see.
fn check(framing: u8, stream: &[u8], seen: &[Option<Vec<u8>>]) {
    let expected: Vec<Option<Vec<u8>>> = match framing {
        0 => stream.split(|byte| *byte == b'\n').map(|line| Some(line.trim_ascii().to_vec())).collect(),
        1 => return,
        _ => vec![Some(stream.to_vec())],
    };
    let expected: Vec<_> = expected.into_iter().filter(|message| *message != Some(Vec::new())).collect();
    assert_eq!(seen, expected);
}
