//! Reads JSON without making anything of it: whether it is valid, and where in it the containers and members are that
//! somebody wants to know of.
//!
//! Texts are read 64 bytes at a time, as bits: which bytes are quotes, brackets, blanks and so on ([`block`]), which of
//! them are inside strings, and what follows what. Only brackets, numbers, literals and escapes are looked at one by one.
//! Nesting costs one bit for each level and no stack.

mod block;

use fearless_simd::{Level, Simd, dispatch};

use self::block::{BYTES, Block};

/// The text is no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// Is told of the containers that it wants to know of, from the text itself inwards, as they are read: whether all of it
/// is JSON turns out at the end. All places are bytes from the beginning of the text.
pub(crate) trait Outline {
    /// A container begins here, in one that is watched; returns whether it is to be watched too.
    fn open(&mut self, at: usize, is_object: bool) -> bool;
    /// The innermost that is watched ends here.
    fn close(&mut self, at: usize);
    /// There is a colon in the innermost that is watched.
    fn colon(&mut self, at: usize);
    /// There is a comma in the innermost that is watched.
    fn comma(&mut self, at: usize);
}

/// Reads a text of exactly one value.
///
/// # Errors
/// It is not valid (RFC 8259). Depth, the size of numbers and halves of surrogate pairs are not looked at.
pub(crate) fn read(text: &str, outline: &mut impl Outline) -> Result<(), Invalid> {
    read_at(Level::new(), text, outline)
}

/// With what the processor can do.
fn read_at(level: Level, text: &str, outline: &mut impl Outline) -> Result<(), Invalid> {
    dispatch!(level, simd => read_with(simd, text.as_bytes(), outline))
}

/// Blocks of which the shapes are found before any is looked into: the one has no branches that a processor could take
/// wrong, the other has, and must not make it wait for the one.
const AT_ONCE: usize = 8;

#[inline(always)]
fn read_with<S: Simd>(simd: S, text: &[u8], outline: &mut impl Outline) -> Result<(), Invalid> {
    let (blocks, rest) = text.as_chunks::<BYTES>();
    let mut last = [b' '; BYTES];
    last[..rest.len()].copy_from_slice(rest);
    let mut blocks = blocks.iter().chain([&last]);
    let (mut lexer, mut nesting) = (Lexer::new(text), Nesting::default());
    let mut shapes = [Shape::default(); AT_ONCE];
    loop {
        let mut count = 0;
        for (shape, block) in shapes.iter_mut().zip(&mut blocks) {
            *shape = lexer.shape(Block::new(simd, block))?;
            count += 1;
        }
        for shape in &shapes[..count] {
            nesting.pass(shape, outline)?;
        }
        if count < AT_ONCE {
            lexer.end()?;
            return nesting.end();
        }
    }
}

/// Where in a block the brackets and separators are that are not in strings.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    bracket: u64,
    open: u64,
    /// Those of objects, which may be of others in strings.
    curly: u64,
    separator: u64,
    colon: u64,
    /// What cannot be in an object: it stands where there should be a key.
    no_key: u64,
}

/// Takes texts apart, and sees to it that everything is followed by what it may be, whichever container it is in.
///
/// Masks of one bit are of the first byte of the next block.
struct Lexer<'t> {
    text: &'t [u8],
    /// Where the next block begins.
    at: usize,
    /// Whether its first byte is escaped.
    escaped: u64,
    /// All ones inside a string.
    in_string: u64,
    /// Whether the last byte belongs to a number or literal.
    in_scalar: u64,
    /// Where that one begins.
    scalar_at: usize,
    /// Whether a value is to follow, or the end of an empty container.
    before_value: u64,
    /// Whether a key is to follow, or a value if this is an array.
    before_key: u64,
}

impl<'t> Lexer<'t> {
    #[inline(always)]
    fn new(text: &'t [u8]) -> Self {
        let (escaped, in_string, in_scalar, scalar_at) = (0, 0, 0, 0);
        Self { text, at: 0, escaped, in_string, in_scalar, scalar_at, before_value: 1, before_key: 0 }
    }

    #[inline(always)]
    fn shape<S: Simd>(&mut self, block: Block<S>) -> Result<Shape, Invalid> {
        let (backslash, quote, control) = (block.is(b'\\'), block.is(b'"'), block.is_control());
        if (backslash | quote | control | self.escaped) == 0 && self.in_string != 0 {
            // In the midst of a long text, which is most of many messages: all stays as it is.
            self.at += BYTES;
            return Ok(Shape::default());
        }
        let escaped = self.escaped(backslash);
        let quote = quote & !escaped;
        // From the opening quote to the last character.
        let inside = prefix_xor(quote) ^ self.in_string;
        self.in_string = broadcast(inside >> 63);
        let mut wrong = inside & control;
        if escaped & inside != 0 {
            wrong |= escaped & inside & !block.is_escapable();
            let hex = escaped & inside & block.is(b'u');
            if hex != 0 {
                wrong |= self.without_hex_digits(hex);
            }
        }

        let string = inside | quote;
        let blank = block.is_blank_or_control() & !string;
        if control & !string != 0 {
            wrong |= control & !(string | block.is(b'\t') | block.is(b'\n') | block.is(b'\r'));
        }
        let (open, close) = block.is_bracket();
        let (open, close) = (open & !string, close & !string);
        let (colon, comma) = (block.is(b':') & !string, block.is(b',') & !string);
        let (bracket, separator, curly) = (open | close, colon | comma, block.is_curly());
        let scalar = !(string | blank | bracket | separator);
        let scalar_begin = scalar & !(scalar << 1 | self.in_scalar);
        // Most are integers. All others are looked at from their first byte on, wherever they end.
        let is_odd = scalar & !block.is_digit() | scalar_begin & block.is(b'0') & (scalar >> 1 | 1 << 63);
        if is_odd != 0 && !self.scalars_are_valid(scalar_begin) {
            return Err(Invalid);
        }
        self.in_scalar = scalar >> 63;
        if self.in_scalar != 0 && scalar_begin != 0 {
            self.scalar_at = self.at + scalar_begin.ilog2() as usize;
        }

        // Values follow opening brackets and separators, and nothing else does.
        let value_begin = quote & inside | scalar_begin | open;
        let value_place = follows(open | separator, blank, &mut self.before_value);
        let empty = close & value_place;
        wrong |= (value_begin & !value_place) | (separator & value_place);
        if empty != 0 {
            wrong |= self.not_behind_open(empty);
        }
        // Colons follow strings, and those commas and the beginning of objects: between them is nothing but a string.
        let key_end = follows(comma | open & curly, string | blank, &mut self.before_key);
        wrong |= colon & !key_end;

        self.at += BYTES;
        if wrong == 0 {
            Ok(Shape { bracket, open, curly, separator, colon, no_key: key_end & !(colon | empty) })
        } else {
            Err(Invalid)
        }
    }

    fn end(&self) -> Result<(), Invalid> {
        if self.in_string == 0 && self.before_value == 0 { Ok(()) } else { Err(Invalid) }
    }

    /// The characters behind a backslash that is not itself escaped.
    #[inline(always)]
    fn escaped(&mut self, backslash: u64) -> u64 {
        // After Lemire and Langdale: of each run of backslashes every other one escapes what follows it, beginning with
        // the first; subtracting tells runs that begin at even places from those that begin at odd ones.
        const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
        let begins = backslash & !self.escaped;
        let ends = ((begins << 1) | ODD).wrapping_sub(begins) ^ ODD;
        let escaped = ends ^ (backslash | self.escaped);
        self.escaped = (ends & backslash) >> 63;
        escaped
    }

    /// Those behind which there are no four hexadecimal digits.
    fn without_hex_digits(&self, these: u64) -> u64 {
        let has_digits = |at: usize| {
            let digits = self.text.get(self.at + at + 1..self.at + at + 5);
            digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        };
        bits(these).filter(|&at| !has_digits(at)).fold(0, |without, at| without | 1 << at)
    }

    /// Those closing brackets that are not behind an opening one.
    #[cold]
    fn not_behind_open(&self, these: u64) -> u64 {
        let is_behind = |at: usize| {
            let before = self.text.get(..self.at + at).unwrap_or_default().trim_ascii_end();
            matches!(before.last(), Some(b'[' | b'{'))
        };
        bits(these).filter(|&at| !is_behind(at)).fold(0, |wrong, at| wrong | 1 << at)
    }

    /// Whether the numbers and literals that begin at these places are valid, and the one before them that did not end in
    /// its block.
    fn scalars_are_valid(&self, begins: u64) -> bool {
        let is_valid = |at| is_scalar(self.text.get(at..).unwrap_or_default());
        (self.in_scalar == 0 || is_valid(self.scalar_at)) && bits(begins).all(|at| is_valid(self.at + at))
    }
}

/// Follows containers into each other, and sees to it that they end as they begin and have in them what they may.
#[derive(Debug, Default)]
struct Nesting {
    /// Where the next block begins.
    at: usize,
    depth: usize,
    /// The depth of the innermost container that is watched.
    watched: usize,
    /// Which of the containers are objects: the innermost is the lowest bit, and as many around it are known as can be left
    /// before more are put back.
    objects: u64,
    /// The same as it was at each [`Nesting::LEVELS`].
    further: Vec<u64>,
}

impl Nesting {
    /// After so many levels what is known of the containers is put away: half as many as fit, so that they are never short.
    const LEVELS: usize = 32;

    #[inline(always)]
    fn pass(&mut self, shape: &Shape, outline: &mut impl Outline) -> Result<(), Invalid> {
        if shape.bracket | shape.separator | shape.no_key == 0 {
            // In the midst of a long text, or of a number.
            self.at += BYTES;
            return Ok(());
        }
        let (mut brackets, mut rest) = (shape.bracket, u64::MAX);
        let (mut in_object, mut wrong) = (0, 0);
        loop {
            // Up to the next bracket, or to the end of the block.
            let here = rest & (brackets ^ brackets.wrapping_sub(1));
            rest ^= here;
            in_object |= here & broadcast(self.objects & 1);
            let is_watched = self.depth == self.watched;
            if is_watched {
                self.separators(shape, here & shape.separator, outline)?;
            }
            if brackets == 0 {
                break;
            }
            let bracket = brackets.trailing_zeros();
            brackets &= brackets - 1;
            let (is_open, is_object) = (shape.open >> bracket & 1, shape.curly >> bracket & 1);
            if is_watched {
                let at = self.at + bracket as usize;
                if is_open == 0 {
                    outline.close(at);
                    self.watched = self.watched.wrapping_sub(1);
                } else if outline.open(at, is_object != 0) {
                    self.watched += 1;
                }
            }
            wrong |= !is_open & (self.objects ^ is_object) & 1;
            // At the outermost and every so many levels, between that level and the next.
            if (self.depth + is_open as usize) % Self::LEVELS <= 1 {
                self.swap(is_open != 0)?;
            }
            (self.objects, self.depth) = match is_open {
                0 => (self.objects >> 1, self.depth - 1),
                _ => (self.objects << 1 | is_object, self.depth + 1),
            };
        }
        wrong |= shape.no_key & in_object | shape.colon & !in_object;
        self.at += BYTES;
        if wrong == 0 { Ok(()) } else { Err(Invalid) }
    }

    fn end(&self) -> Result<(), Invalid> {
        if self.depth == 0 { Ok(()) } else { Err(Invalid) }
    }

    /// Puts away what is known of the containers, or back in its place. Outside of the outermost none can end.
    #[cold]
    fn swap(&mut self, is_open: bool) -> Result<(), Invalid> {
        let level = if is_open { self.depth } else { self.depth.checked_sub(1).ok_or(Invalid)? };
        if level > 0 && level.is_multiple_of(Self::LEVELS) {
            if is_open {
                self.further.push(self.objects);
            } else {
                // As it was inside, where the innermost is one that ends now.
                self.objects = self.further.pop().unwrap_or_default() << 1;
            }
        }
        Ok(())
    }

    /// Some separators of the innermost container that is watched. Around the outermost container there are none.
    #[inline(always)]
    fn separators(&self, shape: &Shape, separators: u64, outline: &mut impl Outline) -> Result<(), Invalid> {
        if separators != 0 && self.depth == 0 {
            return Err(Invalid);
        }
        for at in bits(separators) {
            if shape.colon >> at & 1 != 0 {
                outline.colon(self.at + at);
            } else {
                outline.comma(self.at + at);
            }
        }
        Ok(())
    }
}

/// The first byte that is not blank behind each of these; `carry` is for what is in the next block.
#[inline(always)]
fn follows(these: u64, blank: u64, carry: &mut u64) -> u64 {
    let next = these << 1 | *carry;
    // Adding to the first bit of a run of ones carries to the one behind it.
    let (behind, is_beyond) = (next & blank).overflowing_add(blank);
    *carry = these >> 63 | u64::from(is_beyond);
    (next | behind) & !blank
}

/// Of each bit whether the number of ones up to it is odd.
#[inline(always)]
fn prefix_xor(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

/// All ones for 1, none for 0.
#[inline(always)]
fn broadcast(bit: u64) -> u64 {
    bit.wrapping_neg()
}

/// The places of the ones.
#[inline(always)]
fn bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        at
    })
}

/// Whether a number or literal is what this begins with, and it ends where it may.
#[inline(always)]
fn is_scalar(text: &[u8]) -> bool {
    let rest = match text {
        [b't', b'r', b'u', b'e', rest @ ..] | [b'n', b'u', b'l', b'l', rest @ ..] => rest,
        [b'f', b'a', b'l', b's', b'e', rest @ ..] => rest,
        _ => match number(text) {
            Some(rest) => rest,
            None => return false,
        },
    };
    matches!(rest.first(), None | Some(b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}'))
}

/// What is behind a number.
#[inline(always)]
fn number(text: &[u8]) -> Option<&[u8]> {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let mut rest = match text.strip_prefix(b"0") {
        Some(rest) => rest,
        None => digits(text)?,
    };
    if let [b'.', fraction @ ..] = rest {
        rest = digits(fraction)?;
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        rest = digits(match exponent {
            [b'+' | b'-', exponent @ ..] => exponent,
            _ => exponent,
        })?;
    }
    Some(rest)
}

/// What is behind one digit or more.
#[inline(always)]
fn digits(mut text: &[u8]) -> Option<&[u8]> {
    let [b'0'..=b'9', rest @ ..] = text else { return None };
    text = rest;
    while let [b'0'..=b'9', rest @ ..] = text {
        text = rest;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
