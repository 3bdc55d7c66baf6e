//! `instrumentation.proto`.

use mcpscope_hub as hub;

use crate::proto::{InstrumentationStatus, InstrumentedComponent};

impl From<hub::InstrumentationStatus> for InstrumentationStatus {
    fn from(status: hub::InstrumentationStatus) -> Self {
        let hub::InstrumentationStatus { auto_instrument, components } = status;
        Self {
            instrumented_components: u32::try_from(components.len()).unwrap_or(u32::MAX),
            auto_instrument,
            components: components.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<hub::InstrumentedComponent> for InstrumentedComponent {
    fn from(component: hub::InstrumentedComponent) -> Self {
        let hub::InstrumentedComponent { component, functions, calls, errors } = component;
        Self { component, functions, calls, errors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_place() {
        let component = hub::InstrumentedComponent {
            component: "tools".into(),
            functions: vec!["call_tool".into()],
            calls: 3,
            errors: 1,
        };
        let status = hub::InstrumentationStatus { auto_instrument: true, components: vec![component] };
        let expected = InstrumentationStatus {
            instrumented_components: 1,
            auto_instrument: true,
            components: vec![InstrumentedComponent {
                component: "tools".into(),
                functions: vec!["call_tool".into()],
                calls: 3,
                errors: 1,
            }],
        };
        assert_eq!(InstrumentationStatus::from(status), expected);
    }
}
