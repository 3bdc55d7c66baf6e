//! What is wrong with a request for an experiment, as the details of a status: `google.rpc.BadRequest`.

use tonic::Status;
use tonic_types::{FieldViolation, StatusExt as _};

/// Where a parameter is in a request.
const PARAMETERS: &str = "parameters.";

/// A mistake in a request for an experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The parameter that is wrong, if it is one.
    pub parameter: Option<String>,
    /// What is wrong with it.
    pub told: String,
}

/// The mistakes that a status tells of: empty if what was asked for could be done another time, or if its peer tells no details.
#[must_use]
pub fn of(status: &Status) -> Vec<Mistake> {
    let violations = status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default();
    let mistake = |FieldViolation { field, description, .. }: FieldViolation| Mistake {
        parameter: field.strip_prefix(PARAMETERS).map(str::to_owned),
        told: description,
    };
    violations.into_iter().map(mistake).collect()
}

/// A status that tells these, each with the parameter that is wrong.
#[cfg(feature = "server")]
pub(crate) fn status(code: tonic::Code, message: String, mistakes: &[(Option<&str>, String)]) -> Status {
    if mistakes.is_empty() {
        return Status::new(code, message);
    }
    let violation = |(parameter, told): &(Option<&str>, String)| {
        let field = parameter.map_or_else(|| "scenario".to_owned(), |name| format!("{PARAMETERS}{name}"));
        FieldViolation::new(field, told)
    };
    let violations: Vec<_> = mistakes.iter().map(violation).collect();
    Status::with_error_details(code, message, tonic_types::ErrorDetails::with_bad_request(violations))
}
