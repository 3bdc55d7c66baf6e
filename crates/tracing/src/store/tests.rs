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

#[test]
fn what_is_gone_is_told_once_whoever_asks() {
    // Each shard has one record.
    let store = Store::new(8, 1 << 20, false);
    let (mut asks_both, mut takes) = (store.cursor(), store.cursor());
    let mut lost = [0, 0];
    let mut taken = [0, 0];
    for at in 1..=500_i64 {
        store.push(at as usize, &record(at, Status::Ok)).unwrap();
        store.refuse(u16::from(at % 50 == 0));
        if at % 7 == 0 {
            lost[0] += store.lost(&mut asks_both);
        }
        if at % 40 == 0 {
            for (which, cursor) in [&mut asks_both, &mut takes].into_iter().enumerate() {
                let (records, missed, _) = store.newer(cursor, 3);
                taken[which] += records.oldest_first().count() as u64;
                lost[which] += missed.spans;
            }
        }
    }
    for (which, cursor) in [&mut asks_both, &mut takes].into_iter().enumerate() {
        lost[which] += store.lost(cursor);
        assert_eq!(store.lost(cursor), 0);
        let (records, missed, _) = store.newer(cursor, u64::MAX);
        assert_eq!(missed.spans, 0);
        taken[which] += records.oldest_first().count() as u64;
    }
    assert_eq!([lost[0] + taken[0], lost[1] + taken[1]], [510, 510], "lost {lost:?}, taken {taken:?}");
    assert!(lost[0] > 300, "{lost:?}");
}
