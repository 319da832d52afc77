//! Sets of ids as bitmaps, read and written in the kernel's list form (`0-3,8`).

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::{CpuId, GuestCpuId, Id, NodeId, VcpuId};

/// Host CPUs.
pub type CpuSet = IdSet<CpuId>;
/// Host nodes.
pub type NodeSet = IdSet<NodeId>;
/// Virtual CPUs of one VM.
pub type VcpuSet = IdSet<VcpuId>;
/// CPUs as one guest numbers them.
pub type GuestCpuSet = IdSet<GuestCpuId>;

/// Ids above this are refused when parsing: no Linux has that many CPUs or nodes, and a set
/// from an untrusted place must not allocate without bound.
const MAX_ID: u32 = 65_535;

/// A set of ids; costs one bit per possible id up to the largest member.
pub struct IdSet<T> {
    /// No trailing zero words, so equal sets have equal words.
    words: Vec<u64>,
    of: PhantomData<T>,
}

/// Why a text is not a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a list of ids: {reason} at `{part}` (expected the form `0-3,8`)")]
pub struct ParseSetError {
    /// The whole text.
    pub text: String,
    /// The part that is wrong.
    pub part: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl<T: Id> IdSet<T> {
    /// The empty set.
    pub const fn new() -> Self {
        Self { words: Vec::new(), of: PhantomData }
    }

    /// All ids from `first` to `last`, both included; empty if `first > last`.
    pub fn range(first: u32, last: u32) -> Self {
        let mut set = Self::new();
        set.insert_range(T::from_number(first), T::from_number(last));
        set
    }

    /// Adds `id`; tells whether it was new.
    pub fn insert(&mut self, id: T) -> bool {
        let (word, bit) = place(id);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Adds all ids from `first` to `last`, both included, a word at a time; nothing if
    /// `first > last`.
    pub fn insert_range(&mut self, first: T, last: T) {
        if first > last {
            return;
        }
        let ((low_word, low_bit), (high_word, high_bit)) = (place(first), place(last));
        if self.words.len() <= high_word {
            self.words.resize(high_word + 1, 0);
        }
        for word in low_word..=high_word {
            let from_low = if word == low_word { !(low_bit - 1) } else { u64::MAX };
            let to_high = if word == high_word { high_bit | (high_bit - 1) } else { u64::MAX };
            self.words[word] |= from_low & to_high;
        }
    }

    /// Removes `id`; tells whether it was there.
    pub fn remove(&mut self, id: T) -> bool {
        let was = self.contains(id);
        if was {
            let (word, bit) = place(id);
            self.words[word] &= !bit;
            self.trim();
        }
        was
    }

    /// Whether `id` is a member.
    pub fn contains(&self, id: T) -> bool {
        let (word, bit) = place(id);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    T::from_number(index as u32 * 64 + bit)
                })
            })
        })
    }

    /// The smallest member.
    pub fn first(&self) -> Option<T> {
        self.iter().next()
    }

    /// The largest member.
    pub fn last(&self) -> Option<T> {
        let top = self.words.last()?;
        Some(T::from_number(self.words.len() as u32 * 64 - 1 - top.leading_zeros()))
    }

    /// Members of either.
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a | b)
    }

    /// Members of both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a & b)
    }

    /// Members of `self` that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a & !b)
    }

    /// Whether every member of `self` is in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.words.iter().enumerate().all(|(i, word)| word & !other.words.get(i).copied().unwrap_or(0) == 0)
    }

    /// Whether no member is in both.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).all(|(a, b)| a & b == 0)
    }

    /// The kernel's mask form (`ff,00000001`), 32 bits a group, most significant first.
    pub fn to_mask(&self) -> String {
        let mut groups: Vec<u32> = self.words.iter().flat_map(|w| [*w as u32, (w >> 32) as u32]).collect();
        while groups.len() > 1 && groups.last() == Some(&0) {
            groups.pop();
        }
        let Some(top) = groups.pop() else { return "0".into() };
        let mut text = format!("{top:x}");
        for group in groups.iter().rev() {
            text.push_str(&format!(",{group:08x}"));
        }
        text
    }

    /// Reads the kernel's mask form (`ff,00000001`).
    pub fn from_mask(text: &str) -> Result<Self, ParseSetError> {
        let wrong = |part: &str, reason| ParseSetError { text: text.trim().into(), part: part.into(), reason };
        let groups: Vec<&str> = text.trim().split(',').collect();
        if groups.len() > (MAX_ID as usize + 1) / 32 {
            return Err(wrong(groups[0], "mask too long"));
        }
        let mut set = Self { words: vec![0; groups.len().div_ceil(2)], of: PhantomData };
        for (index, group) in groups.iter().rev().map(|group| group.trim()).enumerate() {
            let is_hex = group.bytes().all(|b| b.is_ascii_hexdigit());
            let bits = u32::from_str_radix(group, 16).ok().filter(|_| is_hex);
            let bits = bits.ok_or_else(|| wrong(group, "not a 32-bit hexadecimal group"))?;
            set.words[index / 2] |= u64::from(bits) << (index % 2 * 32);
        }
        set.trim();
        Ok(set)
    }

    fn combine(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let len = self.words.len().max(other.words.len());
        let at = |words: &[u64], i: usize| words.get(i).copied().unwrap_or(0);
        let words = (0..len).map(|i| op(at(&self.words, i), at(&other.words, i))).collect();
        let mut set = Self { words, of: PhantomData };
        set.trim();
        set
    }

    fn trim(&mut self) {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

fn place<T: Id>(id: T) -> (usize, u64) {
    ((id.number() / 64) as usize, 1 << (id.number() % 64))
}

impl<T: Id> Default for IdSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Clone for IdSet<T> {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), of: PhantomData }
    }
}

impl<T> PartialEq for IdSet<T> {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl<T> Eq for IdSet<T> {}

impl<T> std::hash::Hash for IdSet<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.words.hash(state);
    }
}

impl<T: Id> FromIterator<T> for IdSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(ids: I) -> Self {
        let mut set = Self::new();
        set.extend(ids);
        set
    }
}

impl<T: Id> Extend<T> for IdSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, ids: I) {
        for id in ids {
            self.insert(id);
        }
    }
}

impl<T: Id, const N: usize> From<[T; N]> for IdSet<T> {
    fn from(ids: [T; N]) -> Self {
        ids.into_iter().collect()
    }
}

/// The kernel's list form; the empty set is the empty text.
impl<T: Id> fmt::Display for IdSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut ids = self.iter().map(Id::number).peekable();
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|next| *next == last + 1) {
                last = next;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&first.to_string());
            if last > first {
                text.push_str(&format!("-{last}"));
            }
        }
        f.pad(&text)
    }
}

impl<T: Id> fmt::Debug for IdSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl<T: Id> FromStr for IdSet<T> {
    type Err = ParseSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |part: &str, reason| ParseSetError { text: text.trim().into(), part: part.into(), reason };
        let mut set = Self::new();
        if text.trim().is_empty() {
            return Ok(set);
        }
        for part in text.trim().split(',').map(str::trim) {
            let number = |text: &str| match text.trim().parse::<u32>() {
                Ok(id) if id <= MAX_ID => Ok(id),
                Ok(_) => Err(wrong(part, "id too large")),
                Err(_) => Err(wrong(part, "not a number")),
            };
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(wrong(part, "range runs backwards"));
            }
            set.insert_range(T::from_number(first), T::from_number(last));
        }
        Ok(set)
    }
}

impl<T: Id> Serialize for IdSet<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: Id> Deserialize<'de> for IdSet<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
