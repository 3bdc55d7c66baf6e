//! What is wrong with a configuration, and where.

use std::{fmt, io, path::PathBuf, str::Utf8Error};

/// Everything that is wrong with a configuration; never empty. File by file from top to bottom, then the environment, then
/// settings at odds with each other.
///
/// Shown as one line each, `FILE:LINE:COLUMN: KEY: MESSAGE`.
#[derive(Debug)]
pub struct ConfigErrors {
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) files: Vec<PathBuf>,
}

impl ConfigErrors {
    /// These, if there are any.
    ///
    /// # Errors
    /// There are.
    pub fn none_of(errors: impl IntoIterator<Item = ConfigError>) -> Result<(), Self> {
        let errors: Vec<_> = errors.into_iter().collect();
        if errors.is_empty() { Ok(()) } else { Err(Self { errors, files: Vec::new() }) }
    }

    /// The errors one by one.
    #[must_use]
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// All files that the configuration depends on, also those that are not there; none if it could be read, and turned out to
    /// be wrong later.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// Where it was written.
    pub origin: Origin,
    /// The key concerned, such as `tracing.max_traces`, as it was written; nothing if the whole file is.
    pub path: Option<String>,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, path, problem } = self;
        write!(f, "{origin}: ")?;
        if let Some(path) = path {
            write!(f, "{}: ", excerpt(path))?;
        }
        problem.fmt(f)
    }
}

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file, and the place in it if there is one.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// Line and column, both from 1.
        place: Option<(usize, usize)>,
    },
    /// An environment variable, by name.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, place: Some((line, column)) } => write!(f, "{}:{line}:{column}", path.display()),
            Self::File { path, place: None } => path.display().fmt(f),
            Self::Variable(name) => f.write_str(&excerpt(name)),
        }
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file is missing or cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// A file that is named here is missing or cannot be read.
    #[error("{} cannot be read: {source}", .file.display())]
    Named {
        /// Where it was looked for.
        file: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The file is larger than 1 MiB.
    #[error("is larger than 1 MiB, which no configuration file needs")]
    TooLarge,
    /// The file, or the value of the variable, is not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8(#[source] Option<Utf8Error>),
    /// Lists and mappings are nested deeper than this.
    #[error("brackets are nested more than {0} deep")]
    TooDeep(usize),
    /// The file is not YAML.
    #[error("not valid YAML: {0}")]
    Syntax(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no such key or variable.
    #[error("unknown {what}{}", hint(.likely.as_deref()))]
    Unknown {
        /// `key` or `variable`.
        what: &'static str,
        /// The key or variable that was probably meant.
        likely: Option<String>,
    },
    /// There is no such key or variable of ours: a standard variable says that.
    #[error("unknown {what}, set the environment variable `{standard}` instead")]
    Standard {
        /// `key` or `variable`.
        what: &'static str,
        /// The standard variable, such as `OTEL_EXPORTER_OTLP_ENDPOINT`.
        standard: String,
    },
    /// The key exists, but in a later version.
    #[error("not available in this version")]
    NotAvailable,
    /// The key is in its section already.
    #[error("given twice")]
    Duplicate,
    /// The value is of the wrong type, out of range or at odds with another one: what was expected and found.
    #[error("{0}")]
    Invalid(String),
    /// The file has more errors than anyone would read.
    #[error("more errors follow; these are the first {0}")]
    More(usize),
}

fn hint(likely: Option<&str>) -> String {
    likely.map(|likely| format!(", did you mean `{likely}`?")).unwrap_or_default()
}

/// A piece of input, fit for one line of an error message.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut shown: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}
