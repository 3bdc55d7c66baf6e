//! Text for a terminal: safe to print, aligned, and cut to fit.

use std::borrow::Cow;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use mcpscope_grpc::proto::{HealthState, TraceStatus};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

pub(super) const PLAIN: Style = Style::new();
pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const WARNING: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();

/// What stands for a value that is not known.
pub(super) const UNKNOWN: &str = "–";
/// Between two columns.
const GAP: usize = 2;
/// No column is cut to less.
const MIN_CUT: usize = 12;

/// The text without anything that a terminal obeys or does not show: control characters, marks that turn the direction
/// of writing, and what is invisible are escaped, as in `\u{1b}`.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    // Quotes and backslashes are harmless; Rust would escape them too.
    const HARMLESS: [char; 3] = ['\'', '"', '\\'];
    let pieces = || text.split_inclusive(HARMLESS).map(|piece| (piece.trim_end_matches(HARMLESS), piece));
    if pieces().all(|(piece, _)| piece.escape_debug().eq(piece.chars())) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for (piece, whole) in pieces() {
        safe.extend(piece.escape_debug());
        safe.push_str(&whole[piece.len()..]);
    }
    Cow::Owned(safe)
}

/// The text if it is no wider than `width` columns, else its beginning and an ellipsis.
pub(super) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let mut left = width.saturating_sub(1);
    let fits = |c: &char| match left.checked_sub(c.width().unwrap_or(0)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    Cow::Owned(text.chars().take_while(fits).chain(['…']).collect())
}

/// A text in a style.
pub(super) fn styled(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// A name for a state, and how it looks.
pub(super) fn health(state: HealthState) -> Cell {
    let (text, style) = match state {
        HealthState::Healthy => ("healthy", GOOD),
        HealthState::Degraded => ("degraded", WARNING),
        HealthState::Warning => ("warning", WARNING),
        HealthState::Critical => ("critical", BAD),
        HealthState::Unspecified => (UNKNOWN, DIM),
    };
    Cell::new(text, style)
}

/// A name for how a call ended, and how it looks.
pub(super) fn outcome(status: TraceStatus) -> Cell {
    let (text, style) = match status {
        TraceStatus::Ok => ("ok", GOOD),
        TraceStatus::Error => ("error", BAD),
        TraceStatus::Timeout => ("timeout", BAD),
        TraceStatus::Cancelled => ("cancelled", DIM),
        TraceStatus::Unspecified => (UNKNOWN, DIM),
    };
    Cell::new(text, style)
}

/// One value of a table; safe to print.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn new(text: &str, style: Style) -> Self {
        Self { text: clean(text).into_owned(), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text.as_ref(), PLAIN)
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&styled(&self.text, self.style))
    }
}

/// One column of a table.
#[derive(Clone, Debug)]
pub(super) struct Column {
    title: String,
    kind: Kind,
    width: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Text that may be cut where room is short.
    Long,
    Number,
}

impl Column {
    pub(super) fn text(title: &str) -> Self {
        Self::new(title, Kind::Text)
    }

    pub(super) fn long(title: &str) -> Self {
        Self::new(title, Kind::Long)
    }

    pub(super) fn number(title: &str) -> Self {
        Self::new(title, Kind::Number)
    }

    fn new(title: &str, kind: Kind) -> Self {
        let title = clean(title).into_owned();
        Self { width: title.width(), title, kind }
    }

    /// At least this wide from the beginning, so that later rows line up with earlier ones.
    pub(super) fn at_least(self, width: usize) -> Self {
        Self { width: self.width.max(width), ..self }
    }
}

/// Rows in aligned columns. Columns only ever grow, so that a table can be printed in parts.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    /// Whether the titles are still to be printed.
    titles: bool,
}

impl Table {
    pub(super) fn new<const N: usize>(columns: [Column; N]) -> Self {
        Self::of(columns.into())
    }

    /// Names and values, without titles.
    pub(super) fn pairs() -> Self {
        Self::new([Column::text(""), Column::long("")])
    }

    pub(super) fn of(columns: Vec<Column>) -> Self {
        let titles = columns.iter().any(|column| !column.title.is_empty());
        Self { columns, rows: Vec::new(), titles }
    }

    /// Adds a row, with a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        for (column, cell) in self.columns.iter_mut().zip(&cells) {
            column.width = column.width.max(cell.text.width());
        }
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows since the last call as lines that fit a terminal of that width, if it is one; before the first rows, the
    /// titles.
    pub(super) fn take(&mut self, terminal: Option<usize>) -> String {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return String::new();
        }
        let widths = self.widths(terminal);
        let titles = std::mem::take(&mut self.titles)
            .then(|| self.columns.iter().map(|column| Cell::new(&column.title, DIM)).collect());
        let mut text = String::new();
        for row in titles.into_iter().chain(rows) {
            self.line(&row, &widths, &mut text);
        }
        text
    }

    fn widths(&self, terminal: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.width).collect();
        let gaps = GAP * self.columns.len().saturating_sub(1);
        let mut over = terminal.map_or(0, |terminal| (widths.iter().sum::<usize>() + gaps).saturating_sub(terminal));
        while over > 0 {
            let long = |(column, width): &(&Column, &mut usize)| column.kind == Kind::Long && **width > MIN_CUT;
            let widest = self.columns.iter().zip(&mut widths).filter(long).max_by_key(|(_, width)| **width);
            let Some((_, width)) = widest else { break };
            *width -= 1;
            over -= 1;
        }
        widths
    }

    fn line(&self, row: &[Cell], widths: &[usize], text: &mut String) {
        let mut pending = 0;
        for ((column, width), cell) in self.columns.iter().zip(widths).zip(row) {
            let shown = cut(&cell.text, *width);
            let room = width - shown.width();
            let (before, after) = if column.kind == Kind::Number { (room, 0) } else { (0, room) };
            // Spaces are only printed before something.
            if !shown.is_empty() {
                // Writing to a string does not fail.
                let _ = write!(text, "{:1$}{2}", "", pending + before, styled(&shown, cell.style));
                pending = 0;
            } else {
                pending += before;
            }
            pending += after + GAP;
        }
        text.push('\n');
    }
}

#[cfg(test)]
pub(super) mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    /// What a wire may bring: a window's title, a bell, a C1 control sequence, a return, a turn of direction.
    pub(in super::super) const HOSTILE: &str = "\x1b]0;x\x07\u{9b}2J\ry\u{202e}";

    /// Nothing of it is left but our own colours and ends of lines.
    pub(in super::super) fn assert_harmless(shown: &str) {
        assert!(shown.contains(r"\u{1b}]0;x\u{7}\u{9b}2J\ry\u{202e}"), "{shown:?}");
        for (at, piece) in shown.split('\x1b').enumerate() {
            let (colour, rest) = if at == 0 { ("[m", piece) } else { piece.split_at(piece.find('m').unwrap() + 1) };
            let digits = |c: char| c.is_ascii_digit() || c == ';';
            assert!(colour.trim_start_matches('[').trim_end_matches('m').chars().all(digits), "{shown:?}");
            assert!(!rest.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{shown:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        for (wire, safe) in [
            ("tools/call écho 名前 \"a\\b\" it's", "tools/call écho 名前 \"a\\b\" it's"),
            ("\x1b[31mred\x1b]0;title\x07", r"\u{1b}[31mred\u{1b}]0;title\u{7}"),
            ("a\nb\tc\r\0\x7f", r"a\nb\tc\r\0\u{7f}"),
            ("\u{9b}2J", r"\u{9b}2J"),
            ("user\u{202e}nimda", r"user\u{202e}nimda"),
            ("\"\x1b\"\\\x1b\\", r#""\u{1b}"\\u{1b}\"#),
        ] {
            assert_eq!(clean(wire), safe);
        }
    }

    #[test]
    fn combining_marks_stay() {
        assert_eq!(clean("नमस्ते e\u{301}"), "नमस्ते e\u{301}");
    }

    #[test]
    fn cutting_counts_columns_not_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("名前名前", 8), "名前名前");
        assert_eq!(cut("名前名前", 6), "名前…");
        assert_eq!(cut("abc", 0), "…");
    }

    fn table() -> Table {
        let mut table = Table::new([Column::long("name"), Column::number("n"), Column::text("state")]);
        table.row(vec!["名前".into(), "1".into(), "ok".into()]);
        table.row(vec!["a much longer name than there is room for".into(), "1000".into(), "".into()]);
        table
    }

    #[test]
    fn columns_line_up() {
        let plain = anstream::adapter::strip_str(&table().take(None)).to_string();
        expect![[r#"
            name                                          n  state
            名前                                          1  ok
            a much longer name than there is room for  1000
        "#]]
        .assert_eq(&plain);
        let narrow = anstream::adapter::strip_str(&table().take(Some(30))).to_string();
        expect![[r#"
            name                  n  state
            名前                  1  ok
            a much longer na…  1000
        "#]]
        .assert_eq(&narrow);
    }

    #[test]
    fn a_table_in_parts_keeps_its_columns() {
        let mut table = table();
        let first = anstream::adapter::strip_str(&table.take(None)).to_string();
        assert!(first.starts_with("name"));
        assert_eq!(table.take(None), "", "nothing new");
        table.row(vec!["x".into(), "2".into(), "ok".into()]);
        let second = anstream::adapter::strip_str(&table.take(None)).to_string();
        assert_eq!(second, format!("{:41}  {:>4}  ok\n", "x", "2"));
    }

    proptest! {
        #[test]
        fn nothing_from_the_wire_controls_the_terminal(text in "\\PC*|(\\pC|.)*", width in 0usize..60) {
            prop_assert!(!clean(&text).chars().any(char::is_control));
            let mut table = Table::new([Column::long(&text), Column::number("n")]);
            table.row(vec![Cell::from(&text), Cell::from(&text)]);
            prop_assert!(!table.columns[0].title.chars().any(char::is_control));
            let shown = table.take(Some(width));
            prop_assert_eq!(shown.matches('\n').count(), 2, "one line each");
            let row = shown.lines().last().unwrap();
            prop_assert!(!row.chars().any(char::is_control), "{row:?}");
        }

        #[test]
        fn what_is_cut_fits(text in "\\PC*", width in 1usize..40) {
            prop_assert!(cut(&clean(&text), width).width() <= width);
        }
    }
}
