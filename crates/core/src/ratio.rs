//! A share between nothing and all.

/// A share in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

/// The number is not in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InvalidRatio(
    /// The number that was refused.
    pub f64,
);

impl Ratio {
    /// Nothing.
    pub const ZERO: Self = Self(0.0);
    /// All.
    pub const ONE: Self = Self(1.0);

    /// Takes a share.
    ///
    /// # Errors
    /// The number is below 0, above 1 or not a number.
    pub fn new(value: f64) -> Result<Self, InvalidRatio> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(InvalidRatio(value)) }
    }

    /// The share as a number in 0..=1.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl std::fmt::Display for InvalidRatio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is no share: expected a number from 0 to 1", self.0)
    }
}

impl std::error::Error for InvalidRatio {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_share() {
        assert_eq!(Ratio::new(0.1).map(Ratio::get), Ok(0.1));
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Ratio::new(bad).is_err(), "{bad}");
        }
    }
}
