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

/// Most bytes of a status's message, which goes out twice: once more in the details.
#[cfg(feature = "server")]
const MESSAGE_BYTES: usize = 1024;
/// Most bytes of all mistakes in a status. With a third more for base64, and the message, it is less than the 8 KiB from which on
/// gRPC's C core drops answers at random ("soft limit" of metadata; certain at 16 KiB).
#[cfg(feature = "server")]
const MISTAKES_BYTES: usize = 2048;
/// Most bytes of a text of one of them.
#[cfg(feature = "server")]
const MISTAKE_BYTES: usize = 512;
/// What each takes beside its texts.
#[cfg(feature = "server")]
const FRAME_BYTES: usize = 8;

/// A status that tells these, each with the parameter that is wrong. Those for which there is no room are counted in the last one.
#[cfg(feature = "server")]
pub(crate) fn status(code: tonic::Code, message: &str, mistakes: &[(Option<&str>, String)]) -> Status {
    let message = cut(message, MESSAGE_BYTES);
    if mistakes.is_empty() {
        return Status::new(code, message);
    }
    let (mut violations, mut left) = (Vec::with_capacity(mistakes.len()), MISTAKES_BYTES);
    for (at, (parameter, told)) in mistakes.iter().enumerate() {
        let field = parameter.map_or_else(|| "scenario".to_owned(), |name| format!("{PARAMETERS}{name}"));
        let (field, told) = (cut(&field, MISTAKE_BYTES), cut(told, MISTAKE_BYTES));
        match left.checked_sub(field.len() + told.len() + FRAME_BYTES) {
            Some(rest) => left = rest,
            None => {
                violations.push(FieldViolation::new("parameters", format!("and {} more", mistakes.len() - at)));
                break;
            }
        }
        violations.push(FieldViolation::new(field, told));
    }
    Status::with_error_details(code, message, tonic_types::ErrorDetails::with_bad_request(violations))
}

/// The text, or as much of it as has room, and that something is missing.
#[cfg(feature = "server")]
fn cut(text: &str, bytes: usize) -> String {
    const MORE: &str = " ...";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub(MORE.len()));
    format!("{}{MORE}", text.get(..end).unwrap_or_default())
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use tonic::Code;
    use tonic::metadata::MetadataMap;

    use super::*;

    /// What a status takes of the headers: each has 32 bytes for itself (RFC 9113, section 6.5.2).
    fn header_bytes(status: &Status) -> usize {
        let response: http::Response<()> = status.clone().into_http();
        let headers = MetadataMap::from_headers(response.headers().clone()).into_headers();
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    #[test]
    fn however_much_is_wrong_every_client_takes_the_answer() {
        for (count, letters) in [(1, 20), (8, 60), (300, 1), (300, 300), (2, 100_000)] {
            for letter in ["a", "\u{e9}", "\u{1f980}", " "] {
                let (name, told) = (letter.repeat(letters), letter.repeat(10 * letters));
                let mistakes: Vec<_> = (0..count).map(|_| (Some(name.as_str()), told.clone())).collect();
                let status = status(Code::InvalidArgument, &told.repeat(count), &mistakes);
                let told = of(&status);
                let bytes = header_bytes(&status);
                assert!(bytes < 8192, "{count} of {letters}: {bytes}");
                let (last, others) = told.split_last().unwrap();
                if last.told.starts_with("and ") {
                    assert_eq!(last.told, format!("and {} more", count - others.len()));
                } else {
                    assert_eq!(others.len() + 1, count);
                }
            }
        }
    }

    #[test]
    fn what_has_room_is_told_whole() {
        let mistakes = [(Some("delay"), "too long".to_owned()), (None, "no such scenario".to_owned())];
        let status = status(Code::InvalidArgument, "two mistakes", &mistakes);
        assert_eq!(status.message(), "two mistakes");
        let told: Vec<_> = of(&status).into_iter().map(|mistake| (mistake.parameter, mistake.told)).collect();
        assert_eq!(told, [(Some("delay".into()), "too long".into()), (None, "no such scenario".into())]);
    }
}
