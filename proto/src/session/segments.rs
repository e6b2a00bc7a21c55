//! Bytes in order, in pieces that are given back as soon as they are used up.

use std::{collections::VecDeque, io::IoSlice};

/// The size of a piece, in bytes.
const PIECE: usize = 32 * 1024;

/// The size of the first piece where little is written: most of what idle sessions say is short.
const SMALL: usize = 2 * 1024;

/// A queue of bytes. Empty, it holds no memory to speak of.
#[derive(Debug, Default)]
pub(super) struct Segments {
    pieces: VecDeque<Vec<u8>>,
    /// How much of the first piece is used up.
    start: usize,
    length: usize,
}

impl Segments {
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds bytes at the end.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            let room = match self.pieces.back_mut() {
                Some(piece) if piece.len() < piece.capacity() => piece,
                _ => {
                    let small = self.pieces.is_empty() && bytes.len() <= SMALL;
                    let piece = Vec::with_capacity(if small { SMALL } else { PIECE });
                    self.pieces.push_back(piece);
                    continue;
                }
            };
            let (now, later) = bytes.split_at(bytes.len().min(room.capacity() - room.len()));
            room.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Gives back the first `count` bytes, or all there are.
    pub(super) fn drop_front(&mut self, count: usize) {
        let mut count = count.min(self.length);
        self.length -= count;
        while let Some(piece) = self.pieces.front() {
            let left = piece.len() - self.start;
            if count < left {
                self.start += count;
                return;
            }
            count -= left;
            self.start = 0;
            self.pieces.pop_front();
            if count == 0 {
                return;
            }
        }
    }

    /// The bytes from `from` on, at most `limit` of them, in as many slices as `into` takes; how many those are.
    pub(super) fn slices<'a>(
        &'a self,
        from: usize,
        limit: usize,
        into: &mut [IoSlice<'a>],
    ) -> usize {
        let mut skip = self.start + from;
        let mut left = limit;
        let mut used = 0;
        for piece in &self.pieces {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let bytes = piece.get(skip..).unwrap_or_default();
            let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
            skip = 0;
            let Some(slot) = into.get_mut(used).filter(|_| !bytes.is_empty()) else {
                break;
            };
            *slot = IoSlice::new(bytes);
            used += 1;
            left -= bytes.len();
        }
        used
    }

    /// Moves bytes from the front to `into`, as many as there are and fit; how many those are.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let mut slices = [IoSlice::new(&[]); 8];
        let used = self.slices(0, into.len(), &mut slices);
        let mut taken = 0;
        for slice in slices.iter().take(used) {
            if let Some(room) = into.get_mut(taken..taken + slice.len()) {
                room.copy_from_slice(slice);
                taken += slice.len();
            }
        }
        self.drop_front(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec((0_usize..100_000, 0_usize..100_000, 0_usize..100_000), 1..30)) {
            let mut segments = Segments::default();
            let mut model = VecDeque::new();
            let mut next = 0_u8;
            for (pushed, from, taken) in steps {
                let bytes: Vec<u8> = (0..pushed).map(|_| { next = next.wrapping_add(37); next }).collect();
                segments.push(&bytes);
                model.extend(bytes);
                prop_assert_eq!(segments.len(), model.len());

                let from = from.min(model.len());
                let mut slices = [IoSlice::new(&[]); 3];
                let used = segments.slices(from, 70_000, &mut slices);
                let seen: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect();
                let expected: Vec<u8> = model.iter().skip(from).take(seen.len()).copied().collect();
                prop_assert_eq!(&seen, &expected);
                prop_assert!(!seen.is_empty() || from == model.len());

                let mut into = vec![0; taken];
                let got = segments.take(&mut into);
                let expected: Vec<u8> = model.drain(..got).collect();
                prop_assert_eq!(&into[..got], &expected[..]);
                prop_assert!(got > 0 || taken == 0 || model.is_empty());
                segments.drop_front(10);
                model.drain(..10.min(model.len()));
                prop_assert_eq!(segments.is_empty(), model.is_empty());
                prop_assert!(!model.is_empty() || segments.pieces.is_empty(), "an empty queue holds no memory");
            }
        }
    }
}
