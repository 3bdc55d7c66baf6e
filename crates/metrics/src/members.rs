//! Which series of a metric are new, shown or retired.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::series::{Activity, Cell, Series};

/// New series that are put into the list of those that are shown, instead of sorting it.
const FEW_NEW: usize = 16;

/// The series of one metric.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Born since they were last read.
    pub(crate) born: Vec<Arc<Series>>,
    /// Shown, ordered by labels.
    pub(crate) active: Vec<Member>,
    /// The same, for those who read without keeping others from adding.
    pub(crate) shown: Arc<Vec<Shown>>,
    /// Kept and not shown, the oldest first.
    pub(crate) retired: VecDeque<Member>,
}

/// A series that is shown, with what a page needs of it beside it: to go to the series for it would take longer than to
/// write it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) series: Arc<Series>,
    pub(crate) cell: Cell,
    /// Of a counter or a gauge, its line up to the value; of a histogram, its labels.
    pub(crate) text: Arc<str>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) series: Arc<Series>,
    /// As in [`Shown`]; made once.
    pub(crate) text: Arc<str>,
    pub(crate) activity: Activity,
    /// When its activity was seen to change.
    pub(crate) since: Instant,
}

impl Members {
    /// Shows more series, each in its place.
    pub(crate) fn show(&mut self, new: Vec<Member>) {
        // One by one where it is a few, and nobody reads the list: sorting and copying it would take longer than a page.
        match Arc::get_mut(&mut self.shown).filter(|_| new.len() <= FEW_NEW) {
            Some(shown) => {
                for member in new {
                    let place = self.active.partition_point(|other| other.series.labels < member.series.labels);
                    shown.insert(place, member.shown());
                    self.active.insert(place, member);
                }
            }
            None => {
                self.active.extend(new);
                self.active.sort_by(|a, b| a.series.labels.cmp(&b.series.labels));
                self.list();
            }
        }
    }

    /// Makes the list of those that are shown anew.
    pub(crate) fn list(&mut self) {
        self.shown = Arc::new(self.active.iter().map(Member::shown).collect());
    }
}

impl Member {
    fn shown(&self) -> Shown {
        let Self { series, text, .. } = self;
        Shown { series: Arc::clone(series), cell: series.cell.clone(), text: Arc::clone(text) }
    }
}
