//! The part of every entry that is no record: where root, volume table and prio chain are, and the
//! stamp of ubcache.

use ubcache_env::Env;
use ubcache_format::{BucketNr, JournalSeq, Key, OwnPolicy};

use super::Journal;

impl<E: Env> Journal<E> {
    /// The next entry names another root.
    pub fn set_root(&self, level: u16, root: Key) {
        let header = &mut self.state.borrow_mut().header;
        header.root = root;
        header.root_level = level;
    }

    /// The volume table that the next entry names.
    pub fn volume_table(&self) -> Key {
        self.state.borrow().header.uuid_bucket.clone()
    }

    /// The next entry names another volume table; gives back the key of the former one.
    pub fn set_volume_table(&self, key: Key) -> Key {
        std::mem::replace(&mut self.state.borrow_mut().header.uuid_bucket, key)
    }

    /// The next entry names another prio chain, which is ubcache's own.
    pub fn set_chain(&self, first: BucketNr) {
        let header = &mut self.state.borrow_mut().header;
        header.prio_bucket = first;
        header.stamp.own_chain = true;
    }

    /// Returns true if ubcache wrote the prio chain.
    pub fn has_own_chain(&self) -> bool {
        self.state.borrow().header.stamp.own_chain
    }

    /// The clean data of a former owner is dropped: the next entry no longer asks for that.
    pub fn take_over_is_done(&self) {
        self.state.borrow_mut().header.stamp.drops = None;
    }

    /// Notes a replacement policy that the superblock can't name. Says which entry will have it, if
    /// that is news.
    pub fn set_own_policy(&self, policy: OwnPolicy) -> Option<JournalSeq> {
        let was = std::mem::replace(&mut self.state.borrow_mut().header.stamp.own_policy, policy);
        (was != policy).then(|| self.force_soon())
    }
}
