//! Heads and bodies of HTTP: where messages begin and end is the same however the bytes come; every byte belongs to one
//! place; a plain reading of what is accepted finds the same, and so does whoever reads what goes on.
//!
//! The first byte of an input chooses the side. In the rest, the byte 0xff, which is left out, ends a piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpscope_proxy::fuzzing::{Found, Messages, Side};

const CUT: u8 = 0xff;

fuzz_target!(|input: &[u8]| {
    let [side, script @ ..] = input else { return };
    let side = if side % 2 == 0 { Side::Client } else { Side::Server };
    let pieces: Vec<&[u8]> = script.split(|byte| *byte == CUT).collect();
    let stream = pieces.concat();

    let whole = read(side, [stream.as_slice()]);
    let expected = comparable(whole.clone());
    assert_eq!(comparable(read(side, pieces.iter().copied())), expected, "in {} pieces", pieces.len());
    assert_eq!(comparable(read(side, stream.chunks(1))), expected, "byte by byte");
    let (found, _, rest) = whole;

    let all = found.iter().flat_map(|found| [found.before.as_slice(), &found.head, &found.body].concat());
    let all: Vec<u8> = all.chain(rest).collect();
    assert_eq!(all, stream, "every byte, in its order");
    assert!(found.iter().rev().skip(1).all(|found| found.is_complete), "only the last one may be broken off");
    for found in &found {
        check_head(side, found);
        check_body(found);
        check_edited(side, found);
    }
});

type Read = (Vec<Found>, Option<String>, Vec<u8>);

fn read<'a>(side: Side, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut messages = Messages::new(side);
    pieces.into_iter().for_each(|piece| messages.feed(piece));
    messages.end()
}

/// Without what is between the last data and what is wrong behind it, some of which may be read already.
fn comparable((mut found, bad, mut rest): Read) -> Read {
    if let Some(last) = found.last_mut().filter(|last| bad.is_some() && !last.is_complete) {
        last.body.clear();
        last.trailers.clear();
        rest.clear();
    }
    (found, bad, rest)
}

/// The values of the fields of this name, line by line.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim_matches([' ', '\t']))
        .collect()
}

/// What a head says of the body's length, read by lines.
fn check_head(side: Side, found: &Found) {
    let head = String::from_utf8_lossy(&found.head);
    assert!(head.ends_with("\r\n\r\n") || side == Side::Server, "{head:?}");
    if side == Side::Server && head.split("\r\n").any(|line| line.contains('\n')) {
        // Answers may end their lines with LF alone.
        return;
    }
    let (lengths, codings) = (values(&head, "content-length"), values(&head, "transfer-encoding"));
    match side {
        Side::Client if found.is_chunked => {
            assert!(lengths.is_empty() && codings.len() == 1, "{head:?}");
            assert!(codings[0].eq_ignore_ascii_case("chunked"), "{head:?}");
        }
        Side::Client => {
            assert!(lengths.len() < 2 && codings.is_empty(), "{head:?}");
            let length = lengths.first().map_or(0, |length| length.parse().unwrap());
            assert_eq!(found.told, Some(length), "{head:?}");
        }
        Side::Server if codings.is_empty() && found.told.is_some_and(|told| told > 0) => {
            for length in lengths.iter().flat_map(|value| value.split(',')) {
                assert_eq!(found.told, length.trim_matches([' ', '\t']).parse().ok(), "{head:?}");
            }
        }
        Side::Server if found.is_chunked => {
            let last = codings.last().and_then(|codings| codings.rsplit(',').next()).unwrap_or_default();
            assert!(last.trim().eq_ignore_ascii_case("chunked"), "{head:?}");
        }
        Side::Server => {}
    }
}

/// The data of a body that is complete, read by another parser of chunks.
fn check_body(found: &Found) {
    if !found.is_chunked {
        assert_eq!(found.body, found.data);
        if found.is_complete {
            assert_eq!(found.told, Some(found.data.len() as u64));
        }
        return;
    }
    if !found.is_complete {
        return;
    }
    let (mut rest, mut data) = (found.body.as_slice(), Vec::new());
    loop {
        let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(rest) else {
            panic!("no chunk: {:?}", rest.escape_ascii().to_string())
        };
        rest = &rest[at..];
        if size == 0 {
            break;
        }
        let (chunk, after) = rest.split_at(usize::try_from(size).unwrap());
        data.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n").expect("the end of a chunk");
    }
    assert_eq!((data.as_slice(), rest), (found.data.as_slice(), found.trailers.as_slice()));
    assert!(rest == b"\r\n" || rest.ends_with(b"\r\n\r\n"), "{:?}", rest.escape_ascii().to_string());
}

/// What goes on in place of a head means the same.
fn check_edited(side: Side, found: &Found) {
    let mut messages = Messages::new(side);
    messages.feed(&found.edited);
    let (again, bad, rest) = messages.end();
    let [again] = again.as_slice() else {
        panic!(
            "{:?} became {:?}: {bad:?}",
            found.head.escape_ascii().to_string(),
            found.edited.escape_ascii().to_string()
        )
    };
    assert_eq!((again.told, again.is_chunked, rest), (found.told, found.is_chunked, Vec::new()));
    assert_eq!(again.edited, found.edited, "nothing is left to be changed");
}
