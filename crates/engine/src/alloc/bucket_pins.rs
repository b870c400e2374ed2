//! Pins: a pinned bucket is not reused, whatever happens to the keys that point to it (J2).

use std::cell::RefCell;
use std::rc::Rc;

use ubcache_format::BucketNr;

use super::change_signal::ChangeSignal;
use crate::rules::{Rule, Rules};

/// Bit of a count: the bucket is in the list of those that lost their last pin. So a bucket that
/// is read all the time is there once.
const LISTED: u32 = 1 << 31;

#[derive(Debug)]
pub(crate) struct Pins {
    /// Number of pins of each bucket, and [`LISTED`].
    counts: RefCell<Vec<u32>>,
    /// Buckets that lost their last pin since the allocator looked.
    released: RefCell<Vec<BucketNr>>,
    signal: Rc<ChangeSignal>,
    rules: Rules,
}

impl Pins {
    pub fn new(buckets: u32, signal: Rc<ChangeSignal>, rules: Rules) -> Rc<Pins> {
        let counts = RefCell::new(vec![0; buckets as usize]);
        Rc::new(Pins { counts, released: RefCell::default(), signal, rules })
    }

    pub fn pin(self: &Rc<Pins>, bucket: BucketNr) -> Pin {
        self.counts.borrow_mut()[bucket.0 as usize] += 1;
        Pin { pins: self.clone(), bucket }
    }

    pub fn is_pinned(&self, bucket: BucketNr) -> bool {
        self.counts.borrow()[bucket.0 as usize] & !LISTED > 0
            && self.rules.keeps(Rule::J2PinnedStays)
    }

    /// Takes a bucket that lost its last pin since the allocator looked.
    pub fn take_released(&self) -> Option<BucketNr> {
        let bucket = self.released.borrow_mut().pop()?;
        self.counts.borrow_mut()[bucket.0 as usize] &= !LISTED;
        Some(bucket)
    }

    pub fn has_released(&self) -> bool {
        !self.released.borrow().is_empty()
    }
}

/// Holds a bucket. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Rc<Pins>,
    bucket: BucketNr,
}

impl Clone for Pin {
    fn clone(&self) -> Pin {
        self.pins.pin(self.bucket)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts.borrow_mut();
        let count = &mut counts[self.bucket.0 as usize];
        *count -= 1;
        if *count == 0 {
            *count = LISTED;
            let mut released = self.pins.released.borrow_mut();
            released.push(self.bucket);
            self.pins.signal.released(released.len());
        }
    }
}
