//! Bytes through a tap, however they are split.

use proptest::prelude::*;

use super::*;

fn tap(framing: Framing, max: usize) -> Tap {
    Tap::new(framing, max, Arc::new(Budget::new(1 << 20)))
}

/// What is held, feeding `chunk`.
fn held(tap: &mut Tap, chunk: &[u8], judge: impl FnMut(Seen<'_>, bool) -> Judgement) -> Vec<(Vec<u8>, Passage)> {
    let Fate::Parts(parts) = tap.feed(chunk, true, judge) else { panic!("held") };
    parts.into_iter().map(|part| (part.bytes.into_owned(), part.passage)).collect()
}

/// Feeds `input` in pieces; returns what went on and what was judged.
fn run(framing: Framing, max: usize, pieces: &[&[u8]], hold: impl Fn(usize) -> bool) -> (Vec<u8>, Vec<String>) {
    let (mut out, mut seen) = (Vec::new(), Vec::new());
    let mut tap = tap(framing, max);
    let mut judge = |what: Seen<'_>, _: bool| {
        seen.push(match what {
            Seen::Message(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Seen::Endpoint(bytes) => format!("endpoint {}", String::from_utf8_lossy(bytes)),
            Seen::Oversized => "oversized".to_owned(),
        });
        Passage::Now.into()
    };
    for (at, piece) in pieces.iter().enumerate() {
        match tap.feed(piece, hold(at), &mut judge) {
            Fate::Now(bytes) => out.extend_from_slice(bytes),
            Fate::Parts(parts) => parts.iter().for_each(|part| out.extend_from_slice(&part.bytes)),
        }
    }
    tap.end(&mut judge).iter().for_each(|part| out.extend_from_slice(&part.bytes));
    (out, seen)
}

#[test]
fn lines_are_judged_before_their_end_goes_on() {
    let (out, seen) = run(Framing::Line, 100, &[b"a\nb", b"c\r\n\n", b"d"], |_| false);
    assert_eq!((out.as_slice(), seen), (b"a\nbc\r\n\nd".as_slice(), vec!["a".into(), "bc".into(), "d".into()]));
}

#[test]
fn events_are_told_apart_by_every_kind_of_line_end() {
    for end in ["\n", "\r", "\r\n"] {
        let stream = format!(": hi{end}{end}event: m{end}data: 1{end}data:2{end}{end}data: 3{end}{end}");
        for size in 1..stream.len() {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            for hold in [false, true] {
                let (out, seen) = run(Framing::Sse, 100, &pieces, |_| hold);
                assert_eq!(
                    (String::from_utf8(out).unwrap(), seen),
                    (stream.clone(), vec!["1\n2".into(), "3".into()]),
                    "{end:?} {size}"
                );
            }
        }
    }
}

#[test]
fn a_comment_does_not_wait_for_the_event_that_it_precedes() {
    let mut tap = tap(Framing::Sse, 100);
    let mut seen = 0;
    let mut comment = |chunk: &'static [u8]| {
        let judge = |_: Seen<'_>, _: bool| {
            seen += 1;
            Passage::Never.into()
        };
        assert_eq!(held(&mut tap, chunk, judge), [(chunk.to_vec(), Passage::Now)]);
        assert!(tap.frame.is_empty());
    };
    comment(b":\r\n");
    comment(b": ping\n");
    comment(b"\n");
    assert_eq!(seen, 0);
    // Within an event it is a part of the event, which goes on or is lost as a whole.
    assert_eq!(held(&mut tap, b"data: 1\n: no\n", |_, _| Passage::Never.into()), []);
    assert_eq!(held(&mut tap, b"\n", |_, _| Passage::Never.into()), [(b"data: 1\n: no\n\n".to_vec(), Passage::Never)]);
}

#[test]
fn an_endpoint_is_told_by_its_event() {
    let stream: &[u8] = b"event: endpoint\ndata: /messages?id=1\n\nevent: message\ndata: /not\n\n";
    assert_eq!(run(Framing::Sse, 100, &[stream], |_| false).1, ["endpoint /messages?id=1", "/not"]);
}

#[test]
fn a_fault_holds_and_drops_whole_messages() {
    let mut tap = tap(Framing::Line, 100);
    let drop_b = |seen: Seen<'_>, _| match seen {
        Seen::Message(b"bb") => Passage::Never.into(),
        _ => Passage::Now.into(),
    };
    assert_eq!(held(&mut tap, b"a\nb", drop_b), [(b"a\n".to_vec(), Passage::Now)]);
    let parts = held(&mut tap, b"b\nc\n", drop_b);
    assert_eq!(parts, [(b"bb\n".to_vec(), Passage::Never), (b"c\n".to_vec(), Passage::Now)]);
}

#[test]
fn of_a_message_that_has_begun_to_pass_the_rest_follows() {
    let mut tap = tap(Framing::Line, 100);
    assert!(matches!(tap.feed(b"be", false, |_, _| Passage::Never.into()), Fate::Now(b"be")));
    let parts = held(&mut tap, b"gun\nx\n", |_, _| Passage::Never.into());
    assert_eq!(parts, [(b"gun\n".to_vec(), Passage::Now), (b"x\n".to_vec(), Passage::Never)]);
}

#[test]
fn what_is_too_large_passes_unseen_and_costs_no_memory() {
    let mut tap = tap(Framing::Line, 1000);
    let mut oversized = 0;
    for _ in 0..1000 {
        tap.feed(&[b'x'; 500], false, |seen, _| {
            oversized += usize::from(seen == Seen::Oversized);
            Passage::Now.into()
        });
        assert!(tap.frame.capacity() <= 64 * 1024);
    }
    let mut seen = Vec::new();
    tap.feed(b"end\nnext\n", false, |what, _| {
        seen.push(format!("{what:?}"));
        Passage::Now.into()
    });
    assert_eq!((oversized, seen), (1, vec![format!("{:?}", Seen::Message(b"next"))]));
}

#[test]
fn messages_under_way_share_a_budget() {
    let budget = Arc::new(Budget::new(1000));
    let mut oversized = 0;
    let mut taps: Vec<_> = (0..3).map(|_| Tap::new(Framing::Body, 900, Arc::clone(&budget))).collect();
    for tap in &mut taps {
        tap.feed(&[b'x'; 400], false, |seen, _| {
            oversized += usize::from(seen == Seen::Oversized);
            Passage::Now.into()
        });
    }
    assert_eq!(
        (oversized, budget.left.load(Ordering::Relaxed)),
        (1, 200),
        "two have their copy, the third passes unseen"
    );
    drop(taps);
    assert_eq!(budget.left.load(Ordering::Relaxed), 1000);
}

#[test]
fn what_is_held_keeps_its_share_of_the_budget() {
    let budget = Arc::new(Budget::new(1000));
    let mut tap = Tap::new(Framing::Body, 900, Arc::clone(&budget));
    tap.feed(&[b'x'; 400], true, |_, _| Passage::Now.into());
    let parts = tap.end(|_, _| Passage::Now.into());
    drop(tap);
    assert_eq!((parts.len(), budget.left.load(Ordering::Relaxed)), (1, 600), "until it is written");
    drop(parts);
    assert_eq!(budget.left.load(Ordering::Relaxed), 1000);
}

#[test]
fn what_is_held_of_a_message_that_is_too_large_keeps_its_share_too() {
    let budget = Arc::new(Budget::new(1000));
    let left = || budget.left.load(Ordering::Relaxed);
    let mut tap = Tap::new(Framing::Body, 900, Arc::clone(&budget));
    let mut held = Vec::new();
    let mut feed = |bytes: &[u8]| match tap.feed(bytes, true, |_, _| Passage::Now.into()) {
        Fate::Now(_) => panic!("held"),
        Fate::Parts(parts) => held.extend(parts.into_iter().map(|part| (part.bytes.len(), part.share))),
    };
    feed(&[b'x'; 800]);
    feed(&[b'x'; 200]);
    assert_eq!((held[0].0, held[1].0, left()), (800, 200, 200), "until it is written");
    drop(held);
    assert_eq!(left(), 1000);

    // Likewise where it is its last bytes that make it too large.
    let mut tap = Tap::new(Framing::Line, 900, Arc::clone(&budget));
    tap.feed(&[b'x'; 800], true, |_, _| Passage::Now.into());
    let end = [[b'x'; 200].as_slice(), b"\n"].concat();
    let fate = tap.feed(&end, true, |_, _| Passage::Now.into());
    assert_eq!(left(), 200);
    drop(fate);
    assert_eq!(left(), 1000);
}

#[test]
fn what_is_held_no_more_is_looked_at_as_long_as_there_is_room_for_both() {
    let budget = Arc::new(Budget::new(1000));
    let left = || budget.left.load(Ordering::Relaxed);
    let mut tap = Tap::new(Framing::Body, 900, Arc::clone(&budget));
    tap.feed(&[b'x'; 400], true, |_, _| Passage::Now.into());
    let parts = tap.feed(&[], false, |_, _| panic!("it is not complete"));
    assert_eq!(left(), 200, "what is to be written, and the copy");
    drop(parts);
    assert_eq!(left(), 600);
    let mut lost = 0;
    let mut other = Tap::new(Framing::Body, 900, Arc::clone(&budget));
    other.feed(&[b'x'; 400], true, |_, _| Passage::Now.into());
    let fate = other.feed(&[], false, |seen, _| {
        lost += usize::from(seen == Seen::Oversized);
        Passage::Now.into()
    });
    let Fate::Parts(parts) = fate else { panic!("held") };
    assert_eq!((parts[0].bytes.len(), lost, left()), (400, 1, 200));
    drop(parts);
    assert_eq!(left(), 600, "nothing is kept of it");
}

proptest! {
    #[test]
    fn bytes_come_out_as_they_went_in(
        pieces in prop::collection::vec((prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'd'), any::<u8>()], 0..40), any::<bool>()), 0..20),
        framing in prop_oneof![Just(Framing::Line), Just(Framing::Sse), Just(Framing::Body)],
        max in prop_oneof![1_usize..30, Just(10_000)],
    ) {
        let input: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let slices: Vec<&[u8]> = pieces.iter().map(|(bytes, _)| bytes.as_slice()).collect();
        let (out, _) = run(framing, max, &slices, |at| pieces[at].1);
        prop_assert_eq!(out, input);
    }

    #[test]
    fn the_same_messages_are_seen_however_the_bytes_are_split(
        lines in prop::collection::vec("[a-z]{1,20}", 0..10), size in 1_usize..30, hold in any::<bool>(),
    ) {
        let input = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let pieces: Vec<&[u8]> = input.as_bytes().chunks(size).collect();
        let (_, seen) = run(Framing::Line, 1000, &pieces, |_| hold);
        prop_assert_eq!(seen, lines);
    }
}
