//! Who may disturb the traffic.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq as _;

/// What a caller has to show to start chaos experiments, as `Authorization: Bearer TOKEN`. Cheap to clone.
///
/// To stop them needs none: nobody is hurt by a fault that ends early, and whoever sees that one has to end must be able to.
#[derive(Clone)]
pub struct ChaosToken(Option<Arc<str>>);

impl ChaosToken {
    /// Whoever shows this may; nobody if it is empty.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self(Some(secret.into()))
    }

    /// Whoever reaches the listener may, which is then to be a loopback one.
    #[must_use]
    pub const fn not_needed() -> Self {
        Self(None)
    }

    /// Whether one is needed at all.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        self.0.is_some()
    }

    /// Whether this `Authorization` header, or gRPC metadata of that name, is let through. How long it takes does not tell
    /// how much of it is right.
    #[must_use]
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        let Some(secret) = &self.0 else { return true };
        let shown = authorization.and_then(|header| {
            let (scheme, token) = header.split_at_checked(Self::SCHEME.len())?;
            scheme.eq_ignore_ascii_case(Self::SCHEME).then_some(token.trim_ascii())
        });
        !secret.is_empty() && shown.is_some_and(|token| bool::from(token.ct_eq(secret.as_bytes())))
    }

    const SCHEME: &[u8] = b"Bearer ";
}

impl fmt::Debug for ChaosToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_needed() { "ChaosToken(secret)" } else { "ChaosToken(not needed)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_let_through() {
        let token = ChaosToken::new("0123456789abcdef");
        for right in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER  0123456789abcdef "] {
            assert!(token.admits(Some(right.as_bytes())), "{right}");
        }
        for wrong in ["", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer 0123456789abcdeF"]
        {
            assert!(!token.admits(Some(wrong.as_bytes())), "{wrong}");
        }
        assert!(!token.admits(None));
        assert!(!ChaosToken::new("").admits(Some(b"Bearer ")));
        assert!(ChaosToken::not_needed().admits(None));
        assert!(!format!("{token:?}").contains("0123"));
    }
}
