//! Doubly linked lists of buckets, each in one of two lists or in none; every operation is O(1).
//!
//! The links live in arrays indexed by bucket number, so lists for a million buckets are two arrays
//! of four megabytes and one of one.
//!
//! Invariants: a bucket is in no list if and only if it is its own predecessor; each list from
//! `oldest` along `newer` and from `newest` along `older` are each other's reverse and have `len`
//! members.

/// No bucket: the end of a list.
pub(super) const NIL: u32 = u32::MAX;

/// One of the lists.
#[derive(Copy, Clone, Debug)]
pub(super) struct Ends {
    pub oldest: u32,
    pub newest: u32,
    pub len: u32,
}

const EMPTY: Ends = Ends { oldest: NIL, newest: NIL, len: 0 };

/// Two lists over the same arrays; `L` names them, as 0 and 1.
#[derive(Clone, Debug)]
pub(super) struct LinkedLists<L> {
    /// Towards the oldest; a bucket that is in no list points to itself.
    older: Vec<u32>,
    /// Towards the newest; meaningless for a bucket that is in no list.
    newer: Vec<u32>,
    /// List of each bucket that is in one.
    lists: Vec<L>,
    ends: [Ends; 2],
}

impl<L: Copy + PartialEq + Into<usize> + Default> LinkedLists<L> {
    /// Empty lists with memory for `buckets`; [`LinkedLists::grow`] makes their numbers valid.
    pub fn new(buckets: u32) -> Self {
        let buckets = buckets as usize;
        LinkedLists {
            older: Vec::with_capacity(buckets),
            newer: Vec::with_capacity(buckets),
            lists: Vec::with_capacity(buckets),
            ends: [EMPTY; 2],
        }
    }

    /// Makes the bucket numbers below `buckets` valid. All methods that take a bucket panic if its
    /// number is not.
    pub fn grow(&mut self, buckets: u32) {
        self.older.extend(self.capacity()..buckets);
        self.newer.resize(buckets as usize, NIL);
        self.lists.resize(buckets as usize, L::default());
    }

    /// Bucket numbers are below this.
    pub fn capacity(&self) -> u32 {
        self.older.len() as u32
    }

    pub fn ends(&self, list: L) -> Ends {
        self.ends[list.into()]
    }

    /// Returns true if the bucket is in this list.
    pub fn is_in(&self, list: L, bucket: u32) -> bool {
        self.older[bucket as usize] != bucket && self.lists[bucket as usize] == list
    }

    /// Bucket behind this one, towards the newest; [`NIL`] at the end.
    pub fn newer(&self, bucket: u32) -> u32 {
        self.newer[bucket as usize]
    }

    /// Bucket before this one, towards the oldest; [`NIL`] at the end.
    #[cfg(test)]
    pub fn older(&self, bucket: u32) -> u32 {
        self.older[bucket as usize]
    }

    /// Makes the bucket the newest of a list, wherever it was.
    pub fn insert(&mut self, list: L, bucket: u32) {
        self.remove(bucket);
        let ends = &mut self.ends[list.into()];
        self.older[bucket as usize] = ends.newest;
        self.newer[bucket as usize] = NIL;
        match ends.newest {
            NIL => ends.oldest = bucket,
            newest => self.newer[newest as usize] = bucket,
        }
        ends.newest = bucket;
        ends.len += 1;
        self.lists[bucket as usize] = list;
    }

    /// Makes the bucket the oldest of a list, wherever it was.
    pub fn insert_oldest(&mut self, list: L, bucket: u32) {
        self.remove(bucket);
        let ends = &mut self.ends[list.into()];
        self.older[bucket as usize] = NIL;
        self.newer[bucket as usize] = ends.oldest;
        match ends.oldest {
            NIL => ends.newest = bucket,
            oldest => self.older[oldest as usize] = bucket,
        }
        ends.oldest = bucket;
        ends.len += 1;
        self.lists[bucket as usize] = list;
    }

    /// Takes the bucket out of the list that it is in; no effect if it is in none.
    pub fn remove(&mut self, bucket: u32) {
        let (older, newer) = (self.older[bucket as usize], self.newer[bucket as usize]);
        if older == bucket {
            return;
        }
        let ends = &mut self.ends[self.lists[bucket as usize].into()];
        match older {
            NIL => ends.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
        match newer {
            NIL => ends.newest = older,
            newer => self.older[newer as usize] = older,
        }
        ends.len -= 1;
        self.older[bucket as usize] = bucket;
    }
}
