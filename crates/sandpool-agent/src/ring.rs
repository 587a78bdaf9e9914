//! The last bytes of an output, counted from its beginning.

use std::collections::VecDeque;

/// Keeps the last so many bytes of all that it takes.
#[derive(Debug)]
pub struct Ring {
    bytes: VecDeque<u8>,
    first: u64,
    kept: usize,
}

impl Ring {
    /// An empty one, which keeps at most so many bytes. It has memory for what it holds, and not before.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { bytes: VecDeque::new(), first: 0, kept }
    }

    /// Takes bytes; the oldest go when there are too many.
    pub fn add(&mut self, bytes: &[u8]) {
        let newest = &bytes[bytes.len().saturating_sub(self.kept)..];
        let over = (self.bytes.len() + newest.len()).saturating_sub(self.kept);
        self.bytes.drain(..over);
        self.bytes.extend(newest);
        self.first += (over + bytes.len() - newest.len()) as u64;
    }

    /// The first byte that is still there.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// How many there were in all.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64
    }

    /// At most `most` bytes from this one on, or from the first that is still there.
    #[must_use]
    pub fn from(&self, offset: u64, most: usize) -> Vec<u8> {
        let skip = usize::try_from(offset.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = skip.saturating_add(most).min(self.bytes.len());
        let (one, other) = self.bytes.as_slices();
        let of = |piece: &[u8], before: usize| {
            let (from, to) = (skip.saturating_sub(before), end.saturating_sub(before));
            piece[from.min(piece.len())..to.min(piece.len())].to_vec()
        };
        let mut all = of(one, 0);
        all.extend(of(other, one.len()));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_is_kept_and_the_beginning_counted() {
        let mut ring = Ring::new(8);
        ring.add(b"one\n");
        assert_eq!((ring.from(0, 100), ring.first(), ring.end()), (b"one\n".to_vec(), 0, 4));
        ring.add(b"xxxxxxxx");
        assert_eq!((ring.first(), ring.end(), ring.from(0, 3)), (4, 12, b"xxx".to_vec()));
        ring.add(&[b'y'; 15]);
        assert_eq!((ring.first(), ring.end()), (19, 27));
        assert_eq!((ring.from(25, 100), ring.from(u64::MAX, 100)), (b"yy".to_vec(), Vec::new()));
    }

    proptest! {
        #[test]
        fn it_is_the_end_of_all_that_was_added(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            offset in 0_u64..500,
            most in 0_usize..50,
        ) {
            let (mut ring, mut all) = (Ring::new(32), Vec::new());
            for piece in &pieces {
                ring.add(piece);
                all.extend_from_slice(piece);
                prop_assert_eq!((ring.end(), ring.first()), (all.len() as u64, all.len().saturating_sub(32) as u64));
            }
            let from = usize::try_from(offset.max(ring.first())).unwrap().min(all.len());
            prop_assert_eq!(ring.from(offset, most), &all[from..(from + most).min(all.len())]);
        }
    }
}
