//! How the program ends when it cannot do its work.

use std::fmt::Display;

/// Why the program ends, and with which exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// Bad usage or configuration (sysexits' EX_USAGE).
    pub(crate) const USAGE: u8 = 64;
    /// A listener cannot be bound (EX_UNAVAILABLE).
    const UNAVAILABLE: u8 = 69;
    /// Something that should not happen (EX_SOFTWARE).
    const INTERNAL: u8 = 70;

    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { code: Self::USAGE, error: error.into() }
    }

    pub(crate) fn unavailable(error: impl Into<anyhow::Error>) -> Self {
        Self { code: Self::UNAVAILABLE, error: error.into() }
    }

    pub(crate) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self { code: Self::INTERNAL, error: error.into() }
    }

    /// The command to run cannot be started: 127 if there is none of that name, else 126, as in a shell.
    pub(crate) fn command(kind: std::io::ErrorKind, error: impl Into<anyhow::Error>) -> Self {
        let code = match kind {
            std::io::ErrorKind::NotFound => 127,
            _ => 126,
        };
        Self { code, error: error.into() }
    }

    /// Several at once, with the exit code of the first; nothing if there are none.
    pub(crate) fn all(failures: &[Self]) -> Option<Self> {
        let code = failures.first()?.code;
        let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Some(Self { code, error: anyhow::anyhow!(lines.join("\n")) })
    }

    /// The same, of something that it is about.
    pub(crate) fn of(self, what: &str) -> Self {
        Self { code: self.code, error: self.error.context(what.to_owned()) }
    }

    /// The same, with what can be done about it.
    pub(crate) fn and(self, next: &str) -> Self {
        let error = anyhow::anyhow!("{self}; {next}");
        Self { code: self.code, error }
    }

    pub(crate) const fn code(&self) -> u8 {
        self.code
    }

    /// Says on stderr why the program ends.
    pub(crate) fn report(&self) {
        say(format_args!("mcpscope: {self}"));
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// Prints one line on stderr. Stdout belongs to the protocol; a closed stderr must not end the program.
pub(crate) fn say(line: impl Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
