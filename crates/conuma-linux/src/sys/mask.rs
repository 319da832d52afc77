//! Bitmaps as the kernel takes them.

use conuma_topology::{Id, IdSet};
use libc::c_ulong;

const BITS: usize = c_ulong::BITS as usize;

/// A bitmap of at least one word that holds all members.
pub(super) fn to_words<T: Id>(set: &IdSet<T>) -> Vec<c_ulong> {
    let highest = set.iter().map(Id::number).last().unwrap_or(0) as usize;
    let mut words = vec![0; highest / BITS + 1];
    for id in set.iter().map(|id| id.number() as usize) {
        words[id / BITS] |= 1 << (id % BITS);
    }
    words
}

/// The members of a bitmap.
pub(super) fn from_words<T: Id>(words: &[c_ulong]) -> IdSet<T> {
    let bits = words.iter().enumerate().flat_map(|(index, &word)| {
        (0..BITS).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * BITS + bit)
    });
    bits.filter_map(|bit| u32::try_from(bit).ok()).map(T::from_number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use conuma_topology::CpuSet;

    #[test]
    fn round_trip() {
        for text in ["", "0", "63-64", "0-3,8,1024,8191"] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!(from_words::<conuma_topology::CpuId>(&to_words(&set)), set);
        }
    }
}
