//! What is kept, for how long and how much of it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::*;

const IDLE: Duration = Duration::from_secs(3600);

/// A clock that is set, and whose hour is over at once.
fn prometheus(max_series: usize) -> (Prometheus, Arc<AtomicU64>) {
    let (start, seconds) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let theirs = Arc::clone(&seconds);
    (Prometheus::new(IDLE, max_series, move || start + Duration::from_secs(theirs.load(Relaxed))), seconds)
}

fn counter(prometheus: &Prometheus, name: &str) -> Result<Counter, Refusal> {
    General::counter(prometheus, &Key::from_name(name.to_owned()), &|_| false)
}

#[test]
fn nothing_is_kept_of_names_that_come_and_go() {
    let (prometheus, seconds) = prometheus(10);
    for hour in 0..50 {
        seconds.store(hour * 3700, Relaxed);
        prometheus.upkeep();
        for n in 0..20 {
            let kept = counter(&prometheus, &format!("name{hour}_{n}"));
            assert_eq!(kept.is_ok(), n < 10, "{hour} {n}: {:?}", kept.err());
        }
        let book = prometheus.0.book();
        assert_eq!((book.series, book.families.len()), (10, 10));
        assert_eq!(prometheus.0.slots.read().unwrap().len(), 10);
    }
}

#[test]
fn a_held_handle_takes_a_place_only_while_it_is_written() {
    let (prometheus, seconds) = prometheus(1);
    let held = counter(&prometheus, "held").unwrap();
    held.increment(1);
    seconds.store(3500, Relaxed);
    prometheus.upkeep();
    held.increment(1);
    seconds.store(2 * 3500, Relaxed);
    prometheus.upkeep();
    assert_eq!(counter(&prometheus, "other").unwrap_err(), Refusal::TooManySeries);
    seconds.store(2 * 3500 + 3700, Relaxed);
    prometheus.upkeep();
    let other = counter(&prometheus, "other").unwrap();
    // Its place is another's now.
    held.increment(1);
    assert_eq!(prometheus.take_dropped(), Dropped { bad_values: 0, series: 1 });
    assert_eq!(prometheus.take_dropped(), Dropped::default());
    drop(other);
    seconds.store(4 * 3700, Relaxed);
    prometheus.upkeep();
    held.increment(1);
    assert_eq!(prometheus.take_dropped(), Dropped::default());
    assert!(prometheus.to_prometheus().contains("held_total"));
    assert!(!prometheus.to_prometheus().contains("other"));
}

#[test]
fn a_name_that_mcpscope_has_is_refused() {
    let (prometheus, _) = prometheus(10);
    let refused = General::counter(&prometheus, &Key::from_name("ours"), &|name| name == "ours").unwrap_err();
    assert!(matches!(refused, Refusal::Conflict(_)));
    assert_eq!((prometheus.0.book().series, prometheus.to_prometheus()), (0, String::new()));
}

#[test]
fn long_label_values_are_not_kept() {
    let (prometheus, _) = prometheus(10);
    for end in ["a", "b"] {
        let value = "x".repeat(1_000_000) + end;
        let key = Key::from_parts("x", vec![Label::new("v", value.clone())]);
        General::counter(&prometheus, &key, &|_| false).unwrap().increment(1);
        General::record(&prometheus, "sampled", 1.0, &[("v", &value)], &|_| false).unwrap();
    }
    let slots = prometheus.0.slots.read().unwrap();
    assert_eq!(slots.len(), 2, "they are the same once they are cut");
    let kept = |key: &Key| key.labels().map(|label| label.value().len()).sum::<usize>();
    assert!(slots.keys().all(|key| kept(key) == MAX_VALUE_BYTES));
    drop(slots);
    let text = prometheus.to_prometheus();
    assert!(text.len() < 40_000 && text.contains("\"} 2"), "{}", text.len());
}
