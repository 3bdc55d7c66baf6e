//! Sixty-four bytes at a time: where in them which bytes are, as bits.

use fearless_simd::prelude::*;
use fearless_simd::u8x64;

/// Bytes in a block: one for each bit of a mask.
pub(super) const BYTES: usize = 64;

/// What opening and closing brackets have that square ones have not.
const CURLY: u8 = b'{' ^ b'[';

/// Of each byte of a block whether it is something; the first is the lowest bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<S: Simd>(u8x64<S>);

impl<S: Simd> Block<S> {
    #[inline(always)]
    pub(super) fn new(simd: S, bytes: &[u8; BYTES]) -> Self {
        Self(u8x64::load_array_ref(simd, bytes))
    }

    #[inline(always)]
    pub(super) fn is(self, byte: u8) -> u64 {
        self.0.simd_eq(byte).to_bitmask()
    }

    /// Below U+0020.
    #[inline(always)]
    pub(super) fn is_control(self) -> u64 {
        self.0.simd_lt(b' ').to_bitmask()
    }

    /// Up to U+0020.
    #[inline(always)]
    pub(super) fn is_blank_or_control(self) -> u64 {
        self.0.simd_le(b' ').to_bitmask()
    }

    #[inline(always)]
    pub(super) fn is_digit(self) -> u64 {
        (self.0 - b'0').simd_lt(10).to_bitmask()
    }

    /// `{` or `[`, and `}` or `]`.
    #[inline(always)]
    pub(super) fn is_bracket(self) -> (u64, u64) {
        let square = self.0 & !CURLY;
        (square.simd_eq(b'[').to_bitmask(), square.simd_eq(b']').to_bitmask())
    }

    /// Of a bracket, whether it is that of an object.
    #[inline(always)]
    pub(super) fn is_curly(self) -> u64 {
        (self.0 & CURLY).simd_gt(0).to_bitmask()
    }

    /// What may stand behind a backslash.
    #[inline(always)]
    pub(super) fn is_escapable(self) -> u64 {
        let is = |byte: u8| self.0.simd_eq(byte);
        let letter = is(b'b') | is(b'f') | is(b'n') | is(b'r') | is(b't') | is(b'u');
        (letter | is(b'"') | is(b'\\') | is(b'/')).to_bitmask()
    }
}
