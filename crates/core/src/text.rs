//! Bounding of text that comes from the wire.

/// The longest prefix of `text` that has at most `max_bytes` bytes and ends between characters.
#[must_use]
pub fn bounded(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn cuts_between_characters() {
        assert_eq!(bounded("abc", 8), "abc");
        assert_eq!(bounded("aéz", 2), "a");
        assert_eq!(bounded("aéz", 3), "aé");
        assert_eq!(bounded("é", 0), "");
    }
}
