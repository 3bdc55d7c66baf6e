//! Bytes while they are written.

/// How many bytes the length of a text has.
pub(crate) const LENGTH_BYTES: usize = 2;

/// The length of a text; what is written is bounded to less than this can say.
pub(crate) fn length(bytes: usize) -> [u8; LENGTH_BYTES] {
    (bytes.min(u16::MAX as usize) as u16).to_le_bytes()
}

/// Grows as it must. What it has beyond what is written is zeroed memory, so that room for a piece is found with one comparison.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    written: usize,
}

impl Buffer {
    /// What was written.
    pub(crate) fn written(&self) -> &[u8] {
        self.bytes.get(..self.written).unwrap_or_default()
    }

    pub(crate) fn written_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.written).unwrap_or_default()
    }

    /// What it takes in memory.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn clear(&mut self) {
        self.written = 0;
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).put(bytes);
    }

    /// Room for `bytes` more, which are to be written at once.
    #[inline]
    pub(crate) fn room(&mut self, bytes: usize) -> Room<'_> {
        let at = self.written;
        self.written = at + bytes;
        if self.bytes.len() < self.written {
            self.grow();
        }
        Room(self.bytes.get_mut(at..).unwrap_or_default())
    }

    #[cold]
    fn grow(&mut self) {
        const LEAST: usize = 512;
        self.bytes.resize(self.written.next_power_of_two().max(LEAST), 0);
    }
}

/// Where a piece is written. What finds no room is left out; [`Buffer::room`] gave enough.
#[derive(Debug)]
pub(crate) struct Room<'a>(&'a mut [u8]);

impl Room<'_> {
    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        if let Some((place, rest)) = std::mem::take(&mut self.0).split_at_mut_checked(bytes.len()) {
            place.copy_from_slice(bytes);
            self.0 = rest;
        }
    }

    #[inline]
    pub(crate) fn put_text(&mut self, text: &str) {
        self.put(&length(text.len()));
        self.put_short(text.as_bytes());
    }

    /// The same as [`Room::put`], without a call where they are few: names and values mostly are.
    #[inline]
    pub(crate) fn put_short(&mut self, bytes: &[u8]) {
        if let Some((place, rest)) = std::mem::take(&mut self.0).split_at_mut_checked(bytes.len()) {
            // From both ends, overlapping in the middle.
            if !(copy_ends::<16>(place, bytes) || copy_ends::<8>(place, bytes) || copy_ends::<4>(place, bytes)) {
                place.copy_from_slice(bytes);
            }
            self.0 = rest;
        }
    }
}

/// Copies `N` to `2 * N` bytes.
#[inline]
fn copy_ends<const N: usize>(to: &mut [u8], from: &[u8]) -> bool {
    if !(N..=2 * N).contains(&from.len()) {
        return false;
    }
    if let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) {
        if let Some(place) = to.first_chunk_mut() {
            *place = *first;
        }
        if let Some(place) = to.last_chunk_mut() {
            *place = *last;
        }
    }
    true
}
