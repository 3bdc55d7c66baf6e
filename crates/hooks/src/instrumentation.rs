//! What is instrumented (behaviours H1 and H2).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mcpscope_core::Component;

/// Most components that can be instrumented at a time.
const MAX_COMPONENTS: usize = 256;
/// Most functions of one component.
const MAX_FUNCTIONS: usize = 256;
/// Longest name of a component or function, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// The components that are instrumented on start, with their functions (behaviour H1).
pub const DEFAULT_COMPONENTS: [(Component, &[&str]); 6] = [
    (Component::JsonRpc, &["handle_request"]),
    (Component::SessionManager, &["create_session", "destroy_session"]),
    (Component::Registry, &["register", "unregister", "list"]),
    (Component::Server, &["start_server", "stop_server"]),
    (Component::Transport, &["send", "receive"]),
    (Component::Tools, &["call_tool"]),
];

/// Why a component cannot be instrumented.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstrumentError {
    /// A name is empty or too long.
    #[error("a component or function needs a name of 1 to {MAX_NAME_BYTES} bytes")]
    Name,
    /// A component without functions.
    #[error("{0:?} was given no functions: expected at least one")]
    NoFunctions(String),
    /// Too many functions.
    #[error("{0:?} was given too many functions: expected at most {MAX_FUNCTIONS}")]
    TooManyFunctions(String),
    /// Too many components.
    #[error("{MAX_COMPONENTS} components are instrumented already; uninstrument one first")]
    TooManyComponents,
    /// It is not instrumented.
    #[error("{0:?} is not instrumented")]
    Unknown(String),
}

/// Which components are instrumented. Cheap to clone; every clone is the same registry.
///
/// A probe that has one records nothing for a component that is not in it. When the last clone is dropped, nothing is
/// instrumented any more.
#[derive(Clone, Debug)]
pub struct Instrumentation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    auto: bool,
    /// For the data path: whether each of the six is in the table.
    on: [AtomicBool; Component::ALL.len()],
    functions: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Instrumentation {
    /// A registry; with `auto`, the [`DEFAULT_COMPONENTS`] are in it.
    #[must_use]
    pub fn new(auto: bool) -> Self {
        let defaults = DEFAULT_COMPONENTS.iter().filter(|_| auto);
        let owned = |functions: &[&str]| functions.iter().map(|name| (*name).to_owned()).collect();
        let functions = defaults.map(|(component, functions)| (component.to_string(), owned(functions))).collect();
        Self(Arc::new(Inner {
            auto,
            on: Component::ALL.map(|_| AtomicBool::new(auto)),
            functions: Mutex::new(functions),
        }))
    }

    /// Instruments a component: from now on it is recorded. One that is instrumented already gets these functions instead.
    ///
    /// # Errors
    /// [`InstrumentError`]: nothing has changed.
    pub fn instrument(&self, component: &str, functions: Vec<String>) -> Result<(), InstrumentError> {
        let named = |name: &str| (1..=MAX_NAME_BYTES).contains(&name.len());
        if !named(component) || !functions.iter().all(|name| named(name)) {
            return Err(InstrumentError::Name);
        }
        if functions.is_empty() {
            return Err(InstrumentError::NoFunctions(component.to_owned()));
        }
        if functions.len() > MAX_FUNCTIONS {
            return Err(InstrumentError::TooManyFunctions(component.to_owned()));
        }
        let mut all = self.functions();
        if all.len() >= MAX_COMPONENTS && !all.contains_key(component) {
            return Err(InstrumentError::TooManyComponents);
        }
        all.insert(component.to_owned(), functions);
        self.switch(component, true);
        Ok(())
    }

    /// Takes a component out: from now on nothing is recorded for it.
    ///
    /// # Errors
    /// [`InstrumentError::Unknown`].
    pub fn uninstrument(&self, component: &str) -> Result<(), InstrumentError> {
        let mut all = self.functions();
        all.remove(component)
            .ok_or_else(|| InstrumentError::Unknown(mcpscope_core::bounded(component, MAX_NAME_BYTES).to_owned()))?;
        self.switch(component, false);
        Ok(())
    }

    /// The components and their functions, by name.
    #[must_use]
    pub fn components(&self) -> BTreeMap<String, Vec<String>> {
        self.functions().clone()
    }

    /// Whether the default components were instrumented on start.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        self.0.auto
    }

    /// Whether a component is recorded.
    #[must_use]
    pub fn is_on(&self, component: Component) -> bool {
        self.0.on[component as usize].load(Ordering::Relaxed)
    }

    /// Called with the table locked, so that switch and table agree.
    fn switch(&self, component: &str, on: bool) {
        if let Some(known) = Component::ALL.into_iter().find(|known| known.as_str() == component) {
            self.0.on[known as usize].store(on, Ordering::Relaxed);
        }
    }

    // Every change is one insertion or removal: a panic in another holder leaves nothing half done.
    fn functions(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.0.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_components_from_the_start_unless_asked_otherwise() {
        let all = Instrumentation::new(true).components();
        assert_eq!(all.len(), 6);
        assert_eq!(all["registry"], ["register", "unregister", "list"]);
        let none = Instrumentation::new(false);
        assert!(none.components().is_empty());
        assert!(Component::ALL.into_iter().all(|component| !none.is_on(component)));
    }

    #[test]
    fn components_come_and_go() {
        let registry = Instrumentation::new(true);
        registry.uninstrument("tools").unwrap();
        assert!(!registry.is_on(Component::Tools) && registry.is_on(Component::Registry));
        assert_eq!(registry.uninstrument("tools"), Err(InstrumentError::Unknown("tools".into())));
        registry.instrument("tools", vec!["call_tool".into()]).unwrap();
        assert!(registry.is_on(Component::Tools));
        registry.instrument("mine", vec!["work".into()]).unwrap();
        assert_eq!(registry.components()["mine"], ["work"]);
    }

    #[test]
    fn what_cannot_be_instrumented_changes_nothing() {
        let registry = Instrumentation::new(true);
        let before = registry.components();
        assert_eq!(registry.instrument("", vec!["f".into()]), Err(InstrumentError::Name));
        assert_eq!(registry.instrument("c", vec!["x".repeat(129)]), Err(InstrumentError::Name));
        assert_eq!(registry.instrument("c", vec![]), Err(InstrumentError::NoFunctions("c".into())));
        let many = vec!["f".to_owned(); 257];
        assert_eq!(registry.instrument("c", many), Err(InstrumentError::TooManyFunctions("c".into())));
        assert_eq!(registry.components(), before);
        for n in before.len()..256 {
            registry.instrument(&n.to_string(), vec!["f".into()]).unwrap();
        }
        assert_eq!(registry.instrument("one more", vec!["f".into()]), Err(InstrumentError::TooManyComponents));
        registry.instrument("tools", vec!["g".into()]).unwrap();
    }
}
