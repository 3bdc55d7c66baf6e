//! What readers find while records make room.

use std::num::{NonZeroU64, NonZeroU128};

use mcpscope_core::TraceId;

use super::*;
use crate::buffer::Buffer;
use crate::packed::SpanHead;
use crate::record::{SpanKind, Status};

/// A record that ended at that moment; the moment is its id, too.
fn record(at: i64, status: Status) -> Vec<u8> {
    let mut buffer = Buffer::default();
    packed::begin(&mut buffer, "s");
    let id = SpanId(NonZeroU64::new(at as u64).unwrap());
    let span = SpanHead { id, parent: None, start_ns: 0, kind: SpanKind::Internal };
    let place = packed::begin_span(&mut buffer, span, "work", None);
    packed::end_span(&mut buffer, place, 0, status);
    let trace_id = TraceId(NonZeroU128::new(at as u128).unwrap());
    let head = Head { trace_id, started_ns: at, duration_ns: 0, status, injected: false, late: false, spans: 1 };
    packed::finish(&mut buffer, head);
    buffer.written().to_vec()
}

fn moments(records: &Records) -> Vec<i64> {
    records.oldest_first().map(|record| Head::read(record).unwrap().started_ns).collect()
}

#[test]
fn what_makes_room_between_two_copies_is_read_once() {
    let store = Store::new(1, 1 << 20, true);
    store.push(0, &record(1, Status::Error)).unwrap();
    let mut records = store.newest();
    store.push(0, &record(2, Status::Ok)).unwrap();
    store.add_reserve(&mut records);
    assert_eq!(moments(&records), [1]);
    assert_eq!(moments(&store.records()), [1, 2]);
}

#[test]
fn what_is_too_many_is_not_read_unless_it_failed_and_the_reserve_is() {
    // Eight shards of two records each.
    let store = Store::new(9, 1 << 20, true);
    store.push(0, &record(1, Status::Timeout)).unwrap();
    // The last shard has the oldest.
    store.push(7, &record(2, Status::Error)).unwrap();
    store.push(7, &record(3, Status::Ok)).unwrap();
    for at in 4..=17 {
        store.push(at as usize % 7, &record(at, Status::Ok)).unwrap();
    }
    let newest: Vec<_> = (9..=17).collect();
    assert_eq!(moments(&store.newest()), [&[2][..], &newest].concat());
    assert_eq!(moments(&store.records()), [&[1, 2][..], &newest].concat(), "the first is in the reserve");
}
