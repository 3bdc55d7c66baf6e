//! Where answers are shown: stdout, which may be a terminal.

use std::io::{self, IsTerminal as _, Stdout, Write as _};

use anstream::AutoStream;
use serde::Serialize;

use super::args::Output;

/// Stdout. Colours are for terminals only, and for those who did not set NO_COLOR.
pub(super) struct Screen {
    out: AutoStream<Stdout>,
    output: Output,
    /// In columns; none if it is no terminal.
    width: Option<usize>,
}

impl Screen {
    pub(super) fn new(output: Output) -> Self {
        let stdout = io::stdout();
        let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        Self { out: AutoStream::auto(stdout), output, width }
    }

    /// Shows `value` as one line of JSON, or as the text that `text` makes of it for a terminal of that width.
    pub(super) fn show<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce(&T, Option<usize>) -> String,
    ) -> io::Result<()> {
        let shown = match self.output {
            Output::Text => text(value, self.width),
            Output::Json => json(value)?,
        };
        self.out.write_all(shown.as_bytes())?;
        self.out.flush()
    }

    /// Shows values as lines of JSON, one for each, or as the text that `text` makes of all.
    pub(super) fn show_each<T: Serialize>(
        &mut self,
        values: &[T],
        text: impl FnOnce(&[T], Option<usize>) -> String,
    ) -> io::Result<()> {
        let shown = match self.output {
            Output::Text => text(values, self.width),
            Output::Json => values.iter().map(json).collect::<io::Result<_>>()?,
        };
        self.out.write_all(shown.as_bytes())?;
        self.out.flush()
    }
}

/// One line. What JSON leaves as it is and a terminal may obey (DEL, C1) is escaped too; it can only be inside strings.
fn json<T: Serialize>(value: &T) -> io::Result<String> {
    let mut line = String::new();
    for c in serde_json::to_string(value)?.chars() {
        if c.is_control() {
            line.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_line_without_control_characters() {
        let text = "a\nb\x1b[31m\x7f\u{9b}2J é";
        let line = json(&[text]).unwrap();
        assert_eq!(line, "[\"a\\nb\\u001b[31m\\u007f\\u009b2J é\"]\n");
        assert_eq!(serde_json::from_str::<Vec<String>>(&line).unwrap(), [text]);
    }
}
