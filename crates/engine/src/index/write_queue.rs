//! Leaves that have enough to write, in the order in which they got it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::local::Notify;

use super::leaf::Leaf;

/// The queue of leaves that have enough to write.
#[derive(Default, Debug)]
pub(crate) struct NodeWriter {
    queue: RefCell<VecDeque<Rc<Leaf>>>,
    wake: Notify,
}

impl NodeWriter {
    pub fn request(&self, leaf: &Rc<Leaf>) {
        if !leaf.queued.replace(true) {
            self.queue.borrow_mut().push_back(leaf.clone());
            self.wake.notify_all();
        }
    }

    /// Returns when a leaf is to be written, or the set may be ending.
    pub fn wanted(&self) -> impl Future<Output = ()> {
        self.wake.notified()
    }

    pub fn wake(&self) {
        self.wake.notify_all();
    }

    pub fn next(&self) -> Option<Rc<Leaf>> {
        let leaf = self.queue.borrow_mut().pop_front()?;
        leaf.queued.set(false);
        Some(leaf)
    }
}
