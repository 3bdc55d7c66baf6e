//! What a file of settings is, apart from its keys.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use crate::{records::Records, settings::Conflict};

/// A tree of settings that a file can hold. Its serialised default is the list of its keys.
pub(crate) trait Root: Clone + Debug + Default + Serialize + DeserializeOwned {
    /// Keys of later versions: refused by name, because a setting that does nothing must not look as if it did. A section
    /// stands for all its keys.
    const LATER: &[&str] = &[];

    /// Keys of which only the default means anything in this version: every other value is refused for the same reason.
    const FIXED: &[&str] = &[];

    /// Two keys for one thing: where one alone is written, it counts for both.
    const TWINS: &[[&str; 2]] = &[];

    /// The list of mappings at this path, if there is one.
    fn records(path: &str) -> Option<Box<dyn Records>>;

    /// The standard variable that says what people look for under this name in that section.
    fn standard_variable(_section: &str, _name: &str) -> Option<String> {
        None
    }

    /// What is wrong between settings that are right each for themselves.
    fn conflicts(&self) -> Vec<Conflict>;
}
